import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmhcnet
from mmhcnet import HcNet, VHeat
from mmhcnet.cli.compile import check_compile, compile_blocks, compiled, compiling
from mmhcnet.errors import UserError
from mmhcnet.tracing import COMPILES_FUNCTIONS

from ..toy import toy_runner

new_torch = pytest.mark.skipif(not COMPILES_FUNCTIONS, reason='needs torch 2.7')
FAMILIES = [HcNet, VHeat]
SMALL = {
    HcNet: dict(embed_dims=[8, 16], depths=[2, 2]),
    VHeat: dict(embed_dims=[8, 16], depths=[2, 2], post_norm=False, layer_scale=None),
}


def small(family, **settings):
    return family(SMALL[family], out_indices=(0, 1), **settings)


def deep(family):
    """A whole T, whose blocks differ in their rates of stochastic depth."""
    return family('tiny', drop_path_rate=0.2)


def step(model, shape, training=True):
    image = torch.randn(shape[0], 3, *shape[1:])
    model.train(training)
    with torch.set_grad_enabled(training):
        maps = model(image)
        if training:
            sum(x.mean() for x in maps).backward()


@pytest.mark.slow
@pytest.mark.parametrize('make, stages', [(deep, 4), (small, 2)], ids=['drop path', 'without'])
@pytest.mark.parametrize('family', FAMILIES)
def test_blocks_of_a_stage_share_a_graph(traced, family, make, stages):
    model = make(family)
    compile_blocks(model)
    with compiling() as compilations:
        step(model, (2, 64, 64))
        assert compilations.so_far().graphs == stages
        step(model, (2, 64, 64))
        assert compilations.so_far().graphs == stages
        step(model, (2, 64, 64), training=False)
        assert compilations.so_far().graphs == 2 * stages
    assert compilations.so_far().seconds > 0.01


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_one_graph_for_all_sizes(traced, family):
    model = small(family)
    compile_blocks(model, dynamic=True)
    with compiling() as compilations:
        # A square one first: its height and width are two sizes that happen to be equal.
        for shape in [(2, 64, 64), (2, 64, 96), (3, 96, 64), (2, 72, 104)]:
            step(model, shape)
            assert compilations.so_far().graphs == 2
        for shape in [(2, 64, 64), (4, 64, 96)]:
            step(model, shape, training=False)
        assert compilations.so_far().graphs == 4


def test_each_size_has_a_graph_where_sizes_are_few(traced):
    model = small(HcNet)
    compile_blocks(model)
    with compiling() as compilations:
        for number, batch in enumerate(range(2, 7), 1):
            step(model, (batch, 32, 32), training=False)
            # More than the eight to which torch limits itself.
            assert compilations.so_far().graphs == 2 * number


@pytest.mark.parametrize('family', FAMILIES)
def test_the_model_stays_what_it_is(traced, family):
    model = nn.Sequential(small(family))
    seen = []
    model[0].stages[0][0].register_forward_hook(lambda *_: seen.append(1))
    keys = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == keys
    # As of a moving average of the weights.
    average = copy.deepcopy(model)
    with compiling() as compilations:
        step(average, (1, 32, 32), training=False)
        assert compilations.so_far().graphs == 0
        step(model, (1, 32, 32), training=False)
        assert compilations.so_far().graphs == 2
    assert len(seen) == 2


@pytest.mark.parametrize('family', FAMILIES)
def test_autocast(traced, family):
    model = small(family)
    plain = copy.deepcopy(model)
    compile_blocks(model)
    image = torch.randn(2, 3, 32, 32)
    with compiling(), torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model(image), plain(image))


@new_torch
def test_what_compiling_sets_ends_with_it():
    from torch._dynamo import callback, config
    from torch.fx.experimental import _config as shapes

    before = config.recompile_limit, shapes.use_duck_shape
    with pytest.raises(ValueError), compiling():
        assert (config.recompile_limit, shapes.use_duck_shape) == (64, False)
        raise ValueError
    assert (config.recompile_limit, shapes.use_duck_shape) == before
    handler = callback.callback_handler
    assert not handler.start_callbacks and not handler.end_callbacks


def test_a_model_without_blocks(tmp_path):
    runner = toy_runner(tmp_path)
    with pytest.raises(UserError, match='this model has none: leave it out, or set compile=True'):
        with compiled(runner, 'blocks'):
            raise AssertionError
    with compiled(runner, None):
        runner.train()


@new_torch
def test_cuda_graphs_take_images_of_one_size(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.compiler, 'cudagraph_mark_step_begin', lambda: steps.append(1))
    monkeypatch.setattr(nn.Module, 'compile', lambda module, dynamic, options: None)
    model = small(HcNet)
    handles = compile_blocks(model, graphs=True)
    step(model, (2, 32, 32))
    step(model, (1, 32, 32))
    assert len(steps) == 2
    with pytest.raises(
        UserError, match='an image of 32x40 came after one of 32x32: use --compile without graphs'
    ):
        step(model, (2, 32, 40))
    for handle in handles:
        handle.remove()
    step(model, (2, 32, 40))
    assert len(steps) == 2


def config_of(name, **settings):
    cfg = Config.fromfile(mmhcnet.config(f'{name}.py'))
    cfg.merge_from_dict(settings)
    return cfg


@new_torch
@pytest.mark.parametrize(
    'config, split, device, message',
    [
        ('classification/hcnet_t_in1k', 'train', 'cpu', 'graphs needs a GPU'),
        (
            'detection/mask_rcnn_hcnet_t_1x',
            'train',
            'cuda',
            r'those of train_dataloader differ by Resize\(scale=\(1333, 800\), keep_ratio=True\)',
        ),
        (
            'segmentation/upernet_vheat_t_160k_ade20k',
            'test',
            'cuda',
            r'those of test_dataloader differ by Resize\(scale=\(2048, 512\), keep_ratio=True\)',
        ),
    ],
)
def test_where_there_can_be_no_cuda_graphs(config, split, device, message):
    with pytest.raises(UserError, match=f'{message}: use --compile without graphs'):
        check_compile('graphs', config_of(config), split, device)


@new_torch
def test_cuda_graphs_cannot_accumulate_gradients():
    cfg = config_of('classification/hcnet_t_in1k', **{'optim_wrapper.accumulative_counts': 2})
    with pytest.raises(UserError, match='set optim_wrapper.accumulative_counts=1'):
        check_compile('graphs', cfg, 'train', 'cuda')


def test_old_torch(monkeypatch):
    cfg = config_of('classification/hcnet_digits')
    monkeypatch.setattr(torch, '__version__', '2.1.2+cpu')
    check_compile(None, cfg, 'train', 'cpu')
    with pytest.raises(
        UserError, match='needs torch 2.7 or newer, and this is 2.1.2.*leave it out'
    ):
        check_compile('blocks', cfg, 'train', 'cpu')


@new_torch
def test_two_ways_to_compile():
    cfg = config_of('classification/hcnet_digits', compile=True)
    with pytest.raises(UserError, match='leave out that or --compile'):
        check_compile('blocks', cfg, 'train', 'cpu')


@new_torch
def test_without_a_compiler(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, 'cxx', (None, 'no-such-compiler'))
    with pytest.raises(UserError, match='no-such-compiler.*apt install g.. python3-dev.*or leave'):
        check_compile('blocks', config_of('classification/hcnet_digits'), 'train', 'cpu')
