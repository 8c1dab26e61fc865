"""File data mapping: records, the two-fork cache, ext4's iomap server and the in-process client."""
