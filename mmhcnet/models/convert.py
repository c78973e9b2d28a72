import re

from torch import Tensor

from mmhcnet.checkpoints.fitting import weights_of

State = dict[str, Tensor]
# Names of the authors' modules and parameters inside a block, and ours.
_HCNET_BLOCK = {
    'fc_0.weight': 'conduction.to_k.weight',
    **{f'norm2.{p}': f'refinement.norm.{p}' for p in ('weight', 'bias')},
    **{
        f'mlp.{fc}.{p}': f'refinement.{fc}.{p}' for fc in ('fc1', 'fc2') for p in ('weight', 'bias')
    },
    'mlp.dwconv.weight': 'refinement.dwconv.weight',
}
_VHEAT_BLOCK = {
    f'{theirs}.{p}': f'{ours}.{p}'
    for theirs, ours in {
        'norm1': 'norm1',
        'op.dwconv': 'conduction.dwconv',
        'op.linear': 'conduction.fc_in',
        'op.out_norm': 'conduction.norm',
        'op.out_linear': 'conduction.fc_out',
        'op.to_k.0': 'conduction.to_k',
        'norm2': 'norm2',
        'mlp.fc1': 'mlp.fc1',
        'mlp.fc2': 'mlp.fc2',
    }.items()
    for p in ('weight', 'bias')
}


def _depths(state: State, block: str) -> dict[int, int]:
    """Blocks of each stage, from the highest numbers among keys that match a pattern."""
    depths: dict[int, int] = {}
    for key in state:
        match = re.match(block, key)
        if match:
            stage, index = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), index + 1)
    return {i: depths.get(i, 1) for i in range(max(depths, default=-1) + 1)}


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f'{theirs}.{p}': f'{ours}.{p}' for p in ('weight', 'bias')}


def _hcnet_names(state: State) -> dict[str, str | None]:
    """Every key that such an HcNet has -> ours; None: carries no learned value."""
    depths = _depths(state, r'layers\.(\d+)\.blocks\.(\d+)\.')
    last = max(depths)
    names: dict[str, str | None] = {}
    for part in ('conv1', 'norm1', 'conv2', 'norm2'):
        names.update(_both(f'patch_embed.{part}', f'backbone.stem.{part}'))
    for i, depth in depths.items():
        for j in range(depth):
            theirs, ours = f'layers.{i}.blocks.{j}', f'backbone.stages.{i}.{j}'
            # A count of neighbours that depends on the input size.
            if f'{theirs}.mean_num' in state:
                names[f'{theirs}.mean_num'] = None
            names.update({f'{theirs}.{a}': f'{ours}.{b}' for a, b in _HCNET_BLOCK.items()})
        if i < last:
            names[f'layers.{i}.downsample.reduction.weight'] = (
                f'backbone.downsamples.{i}.conv.weight'
            )
            names.update(_both(f'layers.{i}.downsample.norm', f'backbone.downsamples.{i}.norm'))
    names.update(_both('norm', f'backbone.norm{last}'))
    if any(key.startswith('head.') for key in state):
        names.update(_both('head', 'head.fc'))
    return names


def _vheat_names(state: State) -> dict[str, str | None]:
    """Every key that such a vHeat has -> ours."""
    depths = _depths(state, r'layers\.(\d+)\.(\d+)\.[a-z]')
    # Layer scale is a property of the whole model.
    scaled = any(re.fullmatch(r'layers\.\d+\.\d+\.gamma[12]', key) for key in state)
    downsample = re.compile(r'layers\.(\d+)\.\d+\.[01]\.')
    stages = 1 + max(
        [max(depths, default=0)]
        + [int(m[1]) for m in map(re.compile(r'freq_embed\.(\d+)').fullmatch, state) if m]
        + [int(m[1]) + 1 for m in map(downsample.match, state) if m]
    )
    last = stages - 1
    names: dict[str, str | None] = {}
    for n in (1, 2):
        names.update(_both(f'patch_embed.conv{n}', f'backbone.stem.conv{n}'))
        names.update(_both(f'patch_embed.norm{n}.1', f'backbone.stem.norm{n}'))
    for i in range(stages):
        names[f'freq_embed.{i}'] = f'backbone.freq_embed.{i}'
        depth = depths.get(i, 1)
        for j in range(depth):
            theirs, ours = f'layers.{i}.{j}', f'backbone.stages.{i}.{j}'
            names.update({f'{theirs}.{a}': f'{ours}.{b}' for a, b in _VHEAT_BLOCK.items()})
            if scaled:
                names.update({f'{theirs}.gamma{n}': f'{ours}.gamma{n}' for n in (1, 2)})
        if i < last:
            names[f'layers.{i}.{depth}.0.weight'] = f'backbone.downsamples.{i}.conv.weight'
            names.update(_both(f'layers.{i}.{depth}.1', f'backbone.downsamples.{i}.norm'))
    out_norms = {int(m[1]) for m in map(re.compile(r'outnorm(\d+)\.').match, state) if m}
    if out_norms:
        for i in sorted(i for i in out_norms if i <= last):
            names.update(_both(f'outnorm{i}', f'backbone.norm{i}'))
    else:
        names.update(_both('classifier.0', f'backbone.norm{last}'))
        names.update(_both('classifier.3', 'head.fc'))
    return names


def convert_state_dict(state_dict: dict[str, Tensor], ema: bool = False) -> dict[str, Tensor]:
    """The state dict of the authors' HcNet or vHeat in our names; which one, its keys tell.

    Their HcNet has the isotropic stencil, so load the result into ``HcNet(stencil='isotropic')``.
    The norm before the pooling of a classifier becomes the norm of the last stage. In a
    checkpoint of vHeat inside a detector or segmentor, where keys begin with ``backbone.``, the
    backbone's are converted, ``outnorm{i}`` to ``norm{i}``, and those of the heads are kept.

    Args:
        state_dict (dict): Keys as published, or a checkpoint that has them under ``model`` or
            ``state_dict``. A leading ``module.`` of a distributed run is removed.
        ema (bool): Take the moving average of a training checkpoint, under ``model_ema``.

    Returns:
        dict: New dict with keys ``backbone.*`` and, where the source has heads, theirs:
        ``head.fc.*`` of a classifier.

    Raises:
        ValueError: Neither of the two models, or keys that it does not have, or that it has and
            that are missing; the message lists such keys. Or ``ema`` without ``model_ema``.
    """
    state, heads, prefix = weights_of(state_dict, ema), {}, ''
    if any(key.startswith('backbone.') for key in state):
        prefix = 'backbone.'
        heads = {key: value for key, value in state.items() if not key.startswith(prefix)}
        state = {key[len(prefix) :]: value for key, value in state.items() if key not in heads}
    if any(re.match(r'layers\.\d+\.blocks\.\d+\.', key) for key in state):
        family, names = 'HcNet', _hcnet_names(state)
    elif any(re.match(r'freq_embed\.\d+$|layers\.\d+\.\d+\.op\.', key) for key in state):
        family, names = 'vHeat', _vheat_names(state)
    else:
        raise ValueError(
            'not a state dict of the authors\' HcNet or vHeat: no key like '
            '"layers.0.blocks.0.*" or "freq_embed.0"; the first keys are '
            f'{list(state)[:5]}'
        )
    complaints = []
    for what, keys in (
        (f"are not those of the authors' {family}", state.keys() - names.keys()),
        (f"of the authors' {family} are missing", names.keys() - state.keys()),
    ):
        if keys:
            listed = ', '.join(prefix + key for key in sorted(keys))
            complaints.append(f'{len(keys)} keys {what}: {listed}')
    if complaints:
        raise ValueError('; '.join(complaints))
    converted = {ours: state[theirs] for theirs, ours in names.items() if ours is not None}
    # Theirs are 1x1 convolutions, ours the linear layers that they are.
    for key, value in converted.items():
        if key.endswith('conduction.to_k.weight') or re.search(r'\d\.mlp\.fc[12]\.weight$', key):
            converted[key] = value.flatten(1)
    clash = converted.keys() & heads.keys()
    if clash:
        raise ValueError(f'keys of the heads clash with converted ones: {sorted(clash)}')
    return {**converted, **heads}
