from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor

_PREFIX = 'backbone.'


def _fits(key: str, source: Tensor, target: Tensor) -> bool:
    # vHeat resizes (H, W, C) embeddings while it loads them.
    resized = key.startswith('freq_embed.') and source.dim() == 3
    return source.shape == target.shape or resized and source.shape[2] == target.shape[2]


def use_pretrained(cfg: Config, checkpoint: str) -> None:
    """Let ``cfg.model.backbone`` start from the backbone of a checkpoint.

    The weights are compared with those that the backbone has before anything is built for
    training, and what matched is logged; mmengine's ``init_cfg`` then loads them. A resumed run
    still takes its own weights.

    Args:
        cfg (Config): Changed in place: ``cfg.model.backbone.init_cfg``.
        checkpoint (str): File of a model of ours, with keys ``backbone.*``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No weight of the checkpoint fits the backbone.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    loaded = loaded.get('state_dict', loaded)
    source = {key[len(_PREFIX):]: value for key, value in loaded.items()
              if key.startswith(_PREFIX)}

    backbone_cfg = dict(cfg.model.backbone, init_cfg=None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        target = MODELS.build(backbone_cfg).state_dict()

    matched = [key for key in target if key in source and _fits(key, source[key], target[key])]
    reshaped = [f'{key} ({tuple(source[key].shape)}, here {tuple(target[key].shape)})'
                for key in target if key in source and key not in matched]
    missing = [key for key in target if key not in source]
    unused = [key for key in source if key not in target]
    if not matched:
        found = ', '.join(list(loaded)[:3])
        raise ValueError(
            f"nothing in '{checkpoint}' fits the backbone {backbone_cfg['type']} "
            f"(arch={backbone_cfg.get('arch')}): it needs keys 'backbone.*' of the same shapes, "
            f"the file has {found}, ... Weights as the papers' authors publish them go through "
            'tools/model_converters/official_to_mmhcnet.py first')
    print_log(f'--pretrained {checkpoint}: {len(matched)} of {len(target)} weights of the '
              'backbone matched', logger='current')
    for what, keys in (('stay at their initial values', missing),
                       ('differ in shape and are not loaded', reshaped),
                       ('of the checkpoint are not used', unused)):
        if keys:
            print_log(f'  {len(keys)} {what}: {", ".join(keys)}', logger='current')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix=_PREFIX)
