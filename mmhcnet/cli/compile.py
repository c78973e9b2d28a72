"""``--compile``: torch.compile for the blocks of HcNet and VHeat, where they stand in a model.

The blocks of a stage are alike, so that they share one compiled graph: HcNet-T takes 4 compilations
for its 29 blocks. What surrounds them, as heads that work on lists of boxes, is left as it is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmhcnet.errors import UserError
from mmhcnet.models.backbones.base import HierarchicalBackbone
from mmhcnet.models.layers import DropPath

from .errors import explain
from .image_sizes import varying_step

# Graphs of one block: of four stages, in training and in testing, for whole and last batches, for
# one image and several, and room for another architecture as well.
_GRAPHS = 64


class Compilation(NamedTuple):
    """Graphs that were compiled, and how long it took."""

    graphs: int
    seconds: float


class _Step:
    """Before each forward pass of a backbone with CUDA graphs: what the last one wrote is free."""

    def __init__(self):
        self.size: tuple[int, int] | None = None

    def __call__(self, backbone: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size = tuple(inputs[0].shape[2:])
        if self.size not in (None, size):
            raise UserError(
                '--compile graphs needs images of one size, and an image of {}x{} came after one '
                'of {}x{}: use --compile without graphs'.format(*size, *self.size)
            )
        self.size = size
        torch.compiler.cudagraph_mark_step_begin()


def backbones_of(model: nn.Module) -> list[HierarchicalBackbone]:
    """The HcNets and VHeats in a model, whatever wraps them.

    Raises:
        UserError: There is none.
    """
    backbones = [part for part in model.modules() if isinstance(part, HierarchicalBackbone)]
    if not backbones:
        raise UserError(
            '--compile compiles the blocks of HcNet and VHeat, and this model has '
            'none: leave it out, or set compile=True in the config, by which mmengine '
            'compiles the model as a whole'
        )
    return backbones


def compile_blocks(
    model: nn.Module, dynamic: bool = False, graphs: bool = False
) -> list[RemovableHandle]:
    """Lets the blocks of all HcNets and VHeats in a model run compiled, from their next call on.

    Parameters, state dict and hooks stay as they are, and a copy of the model is not compiled.
    Compilation takes place within :func:`compiling`, when a block is first called.

    Args:
        model (nn.Module): The model, on its device.
        dynamic (bool): One graph for images of all sizes, else one for each size.
        graphs (bool): As CUDA graphs, for images of one size; another size is a UserError.

    Returns:
        list: Handles to remove what ``graphs`` adds to the backbones.

    Raises:
        UserError: No HcNet or VHeat in the model.
    """
    # Inductor cannot plan layouts of maps whose size is open (pytorch/pytorch#172204), and has no
    # need to: blocks are channels last already.
    options = {'layout_optimization': False} if dynamic else {'triton.cudagraphs': graphs}
    handles = []
    for backbone in backbones_of(model):
        for stage in backbone.stages:
            drops = [part for part in stage.modules() if isinstance(part, DropPath)]
            if any(drop.drop_prob > 0 for drop in drops):
                for drop in drops:
                    drop.share_graphs(next(stage.parameters()).device)
            for block in stage.children():
                block.compile(dynamic=dynamic, options=options)
        if graphs:
            handles.append(backbone.register_forward_pre_hook(_Step()))
    return handles


class Compilations:
    """Counts and times what torch.compile does from here on."""

    def __init__(self):
        from torch._dynamo.utils import counters

        self._stats = counters['stats']
        self._before = self._stats['unique_graphs']
        self._begin = self._seconds = 0.0

    def start(self, *_: Any) -> None:
        self._begin = time.perf_counter()

    def end(self, *_: Any) -> None:
        self._seconds += time.perf_counter() - self._begin

    def so_far(self) -> Compilation:
        return Compilation(self._stats['unique_graphs'] - self._before, self._seconds)


@contextmanager
def compiling() -> Iterator[Compilations]:
    """Where blocks compile: with room for all of their graphs, the same ones in every process.

    By default torch takes sizes that are equal in the first image for the same size. Which graph an
    image meets, and so the last bits of its result, would depend on the images before it, and a
    resumed run would differ.
    """
    from torch._dynamo import config as dynamo
    from torch._dynamo.callback import callback_handler
    from torch.fx.experimental import _config as shapes

    compilations = Compilations()
    callback_handler.register_start_callback(compilations.start)
    callback_handler.register_end_callback(compilations.end)
    try:
        with dynamo.patch(recompile_limit=_GRAPHS), shapes.patch(use_duck_shape=False):
            yield compilations
    finally:
        callback_handler.remove_start_callback(compilations.start)
        callback_handler.remove_end_callback(compilations.end)


def check_compile(mode: str | None, cfg: Config, split: str, device: str) -> None:
    """Make sure that ``--compile`` can do what it is asked for, by compiling a small function too.

    Args:
        mode (str, optional): None, 'blocks' or 'graphs', as ``--compile`` gives it.
        cfg (Config): The config.
        split (str): 'train' or 'test', whose images the model will see.
        device (str): Where the model will be.

    Raises:
        UserError: It cannot; the message says what to install, to change or to leave out.
    """
    if mode is None:
        return
    # From 2.7 on parameters are inputs of a graph, which blocks can share.
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 7):
        raise UserError(
            f'--compile needs torch 2.7 or newer, and this is {torch.__version__}: leave it out'
        )
    if cfg.get('compile'):
        raise UserError(
            'the config has compile=..., by which mmengine compiles the model as a '
            'whole: leave out that or --compile'
        )
    if mode == 'graphs':
        _check_graphs(cfg, split, device)
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        # What the second line needs may lie in a cache.
        get_cpp_compiler()
        torch.compile(lambda x: x + 1)(torch.ones(1, device=device))
    except Exception as error:  # compilers fail in their own ways
        raise UserError(
            f'torch cannot compile even x + 1 here ({explain(error)[:200]}): install a C++ '
            "compiler and Python's headers (Debian: apt install g++ python3-dev), or leave "
            '--compile out'
        ) from error


def _check_graphs(cfg: Config, split: str, device: str) -> None:
    if torch.device(device).type != 'cuda':
        raise UserError('--compile graphs needs a GPU: use --compile without graphs')
    step = varying_step(cfg, split)
    if step:
        raise UserError(
            f'--compile graphs needs images of one size, and those of '
            f'{split}_dataloader differ by {step}: use --compile without graphs'
        )
    if cfg.get('optim_wrapper', {}).get('accumulative_counts', 1) > 1:
        raise UserError(
            '--compile graphs takes new memory for gradients in each iteration '
            'and cannot accumulate them: set optim_wrapper.accumulative_counts=1, or '
            'use --compile without graphs'
        )


class CompileHook(Hook):
    """Compiles the blocks of a runner's model, for each phase as its images need it.

    Where images have one size, which :func:`~mmhcnet.cli.image_sizes.varying_step` judges from the
    config, graphs are made for that size, else for any size.

    Args:
        compilations (Compilations): Of the :func:`compiling` around the run.
        graphs (bool): CUDA graphs in the phases whose images have one size.
    """

    def __init__(self, compilations: Compilations, graphs: bool):
        self.compilations = compilations
        self.graphs = graphs
        self._handles: list[RemovableHandle] = []
        self._logged: Compilation | None = None

    def _compile(self, runner: Runner, split: str) -> None:
        for handle in self._handles:
            handle.remove()
        dynamic = varying_step(runner.cfg, split) is not None
        self._handles = compile_blocks(runner.model, dynamic, self.graphs and not dynamic)

    def before_train(self, runner: Runner) -> None:
        self._compile(runner, 'train')

    def before_val(self, runner: Runner) -> None:
        self._compile(runner, 'val')

    def after_val(self, runner: Runner) -> None:
        self._compile(runner, 'train')

    def before_test(self, runner: Runner) -> None:
        self._compile(runner, 'test')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._logged is None:
            self._log(runner)

    after_test_iter = after_train_iter

    def after_run(self, runner: Runner) -> None:
        if self._logged != self.compilations.so_far():
            self._log(runner, ', in all')

    def _log(self, runner: Runner, which: str = '') -> None:
        self._logged = self.compilations.so_far()
        blocks = sum(
            len(stage) for backbone in backbones_of(runner.model) for stage in backbone.stages
        )
        runner.logger.info(
            f'--compile: {self._logged.graphs} compilations for {blocks} blocks took '
            f'{self._logged.seconds:.1f} s{which}'
        )


@contextmanager
def compiled(runner: Runner, mode: str | None) -> Iterator[None]:
    """Where a runner trains or tests with ``--compile``, or without it where mode is None.

    Raises:
        UserError: There is nothing to compile in its model.
    """
    if mode is None:
        yield
        return
    backbones_of(runner.model)
    with compiling() as compilations:
        runner.register_hook(CompileHook(compilations, mode == 'graphs'))
        yield
