"""py4fs: mount, read and write ext4 images in user space.

`open_image` is where to start; see `py4fs.api`. Importing this package needs neither pyfuse3 nor trio.
"""

from py4fs import errors
from py4fs.api import File, Filesystem, OpenOptions, open_device, open_image

__version__ = "0.1.0"
__all__ = ["File", "Filesystem", "OpenOptions", "__version__", "errors", "open_device", "open_image"]
