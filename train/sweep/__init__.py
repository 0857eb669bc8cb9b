"""Train the runs of a recipe, several at a time, and compare them."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.sweep.devices import DeviceGroup, share_devices
    from bmlpipe.train.sweep.recipe import Job, Recipe
    from bmlpipe.train.sweep.recipe_file import find_recipe, read_recipe

__all__ = ["DeviceGroup", "Job", "Recipe", "find_recipe", "read_recipe", "share_devices"]

__getattr__ = lazy_exports(
    __name__,
    {
        "devices": ["DeviceGroup", "share_devices"],
        "recipe": ["Job", "Recipe"],
        "recipe_file": ["find_recipe", "read_recipe"],
    },
)
