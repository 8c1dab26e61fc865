"""Bytes at an offset: file and block device, memory and fault-injecting devices for tests."""
