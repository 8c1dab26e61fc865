"""What several test levels share: capabilities of the machine, images, mounts, tree comparison, log guard."""
