"""Tests, named by level: t0_layout t1_pure t2_ext4 t3_vfs t4_fuse t5_cli; support/ holds the shared tools."""
