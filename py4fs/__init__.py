"""py4fs: mount, read and write ext4 images in user space.

`open_image` is where to start; see `py4fs.api`. Importing this package needs neither pyfuse3 nor trio.
"""

# `compiled` comes first: it decides where the modules of the core are found
from py4fs import compiled, errors
from py4fs.api import File, Filesystem, OpenOptions, open_device, open_image

__version__ = "0.1.0"
__all__ = ["File", "Filesystem", "OpenOptions", "__version__", "compiled", "errors", "open_device", "open_image"]
