"""py4fs: mount, read and write ext4 images in user space."""
