"""The classifiers by name, for mmpretrain."""

from pathlib import Path

from .config_files import config


def register_models() -> None:
    """Let mmpretrain's ``list_models`` and ``get_model`` find the classifiers by name.

    mmpretrain looks for no models in other packages, and importing mmhcnet must not import it; so
    this call is needed once in a program.

    Raises:
        ImportError: mmpretrain is not installed.
    """
    from mmpretrain.apis import ModelHub

    if not ModelHub.has('hcnet_t_in1k'):
        index = Path(config('classification/metafile.yml'))
        ModelHub.register_model_index(index, config_prefix=index.parents[2])
