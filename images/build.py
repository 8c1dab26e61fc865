"""Build images by name: `python -m images.build DIR [--only NAME ...] [--list] [--force]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from images import kernel
from images.recipes import RECIPES, Recipe
from images.tools import ToolError, debugfs, fsck, fsck_clean, mke2fs


def build(recipe: Recipe, path: Path) -> Path:
    """Build one image at `path` (replacing what is there) that passes `e2fsck -fn`; ToolError otherwise."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        mke2fs(part, recipe.size, *recipe.mke2fs)
        if recipe.superblock:
            debugfs(part, recipe.superblock)
        for fill in recipe.fill:
            with tempfile.TemporaryDirectory(prefix="py4fs-stage-") as stage:
                debugfs(part, fill(Path(stage)))
        if recipe.reindex:
            fsck(part, "-yD")
        if recipe.recount:
            fsck(part, "-y")
        if recipe.kernel_fill:
            with kernel.loop_mount(part) as root:
                for write in recipe.kernel_fill:
                    write(root)
        fsck_clean(part)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="images.build", description="Build the image matrix.")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=sorted(RECIPES), help="these images only"
    )
    parser.add_argument("--force", action="store_true", help="rebuild images that exist")
    parser.add_argument("--list", action="store_true", help="list the names and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(RECIPES))
        return 0
    args.directory.mkdir(parents=True, exist_ok=True)
    skipped = 0
    for name in args.only or RECIPES:
        recipe = RECIPES[name]
        path: Path = args.directory / f"{name}.img"
        if path.exists() and not args.force:
            continue
        if recipe.kernel_fill and not kernel.available():
            skipped += 1
            continue
        try:
            build(recipe, path)
        except ToolError as exc:
            print(f"images: {name}: {exc}", file=sys.stderr)
            return 1
        print(path)
    if skipped:
        print(f"images: {skipped} images were left out: filling them takes root and loop devices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
