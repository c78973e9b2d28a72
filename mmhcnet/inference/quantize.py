"""A classifier in 8-bit integers for CPUs: calibration, quantisation, and running the result.

Products and convolutions compute in int8 with ranges that calibration images give. The heat
equation's own operators, the stencil and the cosine transform, stay in floating point: they work on
small differences, and take little of the time.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mmhcnet.datasets.layouts import IMAGES
from mmhcnet.errors import UserError, require_packages

from .export import export_onnx, exportable

OPSET = 17
# Names of the exported nodes: torch calls them after the module that they are made in.
_IN_FLOAT = r'.*/conduction/(Conv|MatMul)(_\d+)?'

# Normalised images (B, C, H, W) to logits (B, classes).
Run = Callable[[np.ndarray], np.ndarray]


class Backend(NamedTuple):
    """What makes int8 models and runs them."""

    suffix: str
    packages: tuple[str, ...]
    # ONNX file in floating point, file to write, normalised images (1, C, H, W)
    quantize: Callable[[str, str, Sequence[np.ndarray]], None]
    # File, threads, floating-point type -> a function, and the height and width that it takes
    open: Callable[[str, int, str], tuple[Run, tuple[int, int]]]
    # Floating-point types that it computes in on this machine; the last is the fastest.
    precisions: Callable[[], tuple[str, ...]]


def _quantize_onnxruntime(source: str, out: str, images: Sequence[np.ndarray]) -> None:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {'image': image}

    with tempfile.TemporaryDirectory() as folder:
        fused, prepared = (os.path.join(folder, f'{name}.onnx') for name in ('fused', 'prepared'))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = fused
        # GELU becomes one operator while its parts are together: where its input is quantised they
        # would stay five. The tanh form takes less time, and differs by less than int8 resolves.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry('optimization.enable_gelu_approximation', '1')
        onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
        quant_pre_process(fused, prepared)
        names = [node.name for node in onnx.load(prepared).graph.node]
        quantize_static(
            prepared,
            out,
            Images(),
            per_channel=True,
            # Unsigned times signed is the product that AVX-512 has an instruction for.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=['Conv', 'Gemm', 'MatMul'],
            nodes_to_exclude=[name for name in names if re.fullmatch(_IN_FLOAT, name)],
            # What follows a product takes floating point, and so it gives that at once.
            extra_options=dict(OpTypesToExcludeOutputQuantization=['MatMul', 'Gemm']),
        )


def _open_onnxruntime(path: str, threads: int, precision: str) -> tuple[Run, tuple[int, int]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    height, width = session.get_inputs()[0].shape[2:]
    return lambda image: np.asarray(session.run(None, {'image': image})[0]), (height, width)


def _quantize_openvino(source: str, out: str, images: Sequence[np.ndarray]) -> None:
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino  # pyright: ignore[reportMissingImports]

    model = openvino.Core().read_model(source)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(images),
        subset_size=len(images),
        preset=nncf.QuantizationPreset.MIXED,
        # Smooths the channels that a GELU leaves with very different ranges.
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(patterns=[_IN_FLOAT], validate=False),
    )
    openvino.save_model(quantized, out)


def _open_openvino(path: str, threads: int, precision: str) -> tuple[Run, tuple[int, int]]:
    import openvino  # pyright: ignore[reportMissingImports]

    core = openvino.Core()
    model = core.read_model(path)
    compiled = core.compile_model(
        model,
        'CPU',
        {
            'INFERENCE_NUM_THREADS': threads,
            'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_PRECISION_HINT': {'float32': 'f32', 'bfloat16': 'bf16'}[precision],
        },
    )
    height, width = (side.get_length() for side in list(model.input(0).partial_shape)[2:])
    return lambda image: compiled(image)[0], (height, width)


def _openvino_precisions() -> tuple[str, ...]:
    import openvino  # pyright: ignore[reportMissingImports]

    has_bf16 = 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    return ('float32', 'bfloat16') if has_bf16 else ('float32',)


BACKENDS = {
    'openvino': Backend(
        '.xml',
        ('onnx', 'openvino', 'nncf'),
        _quantize_openvino,
        _open_openvino,
        _openvino_precisions,
    ),
    'onnxruntime': Backend(
        '.onnx',
        ('onnx', 'onnxruntime'),
        _quantize_onnxruntime,
        _open_onnxruntime,
        lambda: ('float32',),
    ),
}


class ExportedClassifier:
    """An exported classifier, int8 or not, for images of one size on a CPU.

    Args:
        path (str): ``.onnx`` or ``.xml``, as :func:`quantize` writes it.
        backend (str, optional): A key of :data:`BACKENDS`. Default: by the suffix of the file.
        precision (str, optional): Floating-point type of what is not int8: 'float32', or with
            OpenVINO on a processor that has it 'bfloat16', which is then the default.
        threads (int, optional): Default: as many as torch uses.

    Raises:
        UserError: No such file, or a file or precision that is not supported.
    """

    def __init__(
        self,
        path: str,
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ):
        if backend is None:
            backend = next((name for name, b in BACKENDS.items() if path.endswith(b.suffix)), None)
        if backend not in BACKENDS:
            raise UserError(
                f"'{path}' is of no backend that is supported: a file of "
                + ' or '.join(f'{name} ({b.suffix})' for name, b in BACKENDS.items())
            )
        if not os.path.isfile(path):
            raise UserError(f"no model file '{path}'")
        require_packages(*BACKENDS[backend].packages[1:])
        known = BACKENDS[backend].precisions()
        precision = precision or known[-1]
        if precision not in known:
            raise UserError(
                f'{backend} computes in {" or ".join(known)} on this machine, got {precision!r}'
            )
        self.path = path
        threads = threads or torch.get_num_threads()
        self._run, self.size = BACKENDS[backend].open(path, threads, precision)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Normalised images (B, C, H, W), float32 -> logits (B, classes).

        Raises:
            UserError: Images of another size.
        """
        if tuple(image.shape[2:]) != self.size:
            raise UserError(
                f"'{self.path}' takes images of {self.size[0]}x{self.size[1]}, got "
                f'{image.shape[2]}x{image.shape[3]}: resize them, or quantise the model for that '
                'size'
            )
        return self._run(np.ascontiguousarray(image, dtype=np.float32))


def find_images(folder: str, count: int) -> list[str]:
    """Up to ``count`` images below a folder, evenly spaced in the order of their names.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"no folder '{folder}'")
    files = sorted(str(p) for p in Path(folder).rglob('*') if p.suffix.lower() in IMAGES)
    if not files:
        raise UserError(
            f"no image in '{folder}' or below it: calibration takes {', '.join(IMAGES)}"
        )
    return _spread(files, count)


def _spread(items: Sequence, count: int) -> list:
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def load_images(cfg: Config, files: Sequence[str]) -> list[Tensor]:
    """Images as the config's test pipeline gives them, before the data preprocessor.

    Raises:
        UserError: They are of several sizes.
    """
    init_default_scope(cfg.default_scope)
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    samples = {file: pipeline(dict(img_path=file)) for file in files}
    # A pipeline gives None for an image that it leaves out.
    images = {file: sample['inputs'] for file, sample in samples.items() if sample is not None}
    sizes = {tuple(image.shape[1:]): file for file, image in images.items()}
    if len(sizes) > 1:
        shown = ', '.join(f"{h}x{w} of '{file}'" for (h, w), file in list(sizes.items())[:2])
        raise UserError(
            f'an int8 model takes images of one size, and the test pipeline gives several '
            f'({shown}): end it with a Resize to a fixed scale or a CenterCrop'
        )
    return list(images.values())


class Quantization(NamedTuple):
    """Models of one classifier in float32, and what they were calibrated with."""

    module: nn.Module  # torch
    source: str  # ONNX file
    images: list[np.ndarray]  # normalised, (1, C, H, W)


def prepare(cfg: Config, checkpoint: str, folder: str, count: int, work_dir: str) -> Quantization:
    """Load a classifier, export it for the size of its images, and read those for calibration.

    Args:
        cfg (Config): Of a classifier.
        checkpoint (str): Its weights.
        folder (str): Has calibration images in it or below it.
        count (int): Of calibration images, at most.
        work_dir (str): Folder for the exported file.

    Raises:
        UserError: No classifier, no images, or images of several sizes.
    """
    if cfg.get('default_scope') != 'mmpretrain':
        raise UserError(
            'classifiers are quantised here, and the default_scope of the config is '
            f"{cfg.get('default_scope')!r}: tools/deployment/export_onnx.py exports other models, "
            'in float32'
        )
    images = load_images(cfg, find_images(folder, count))
    size = tuple(images[0].shape[1:])
    module = exportable(cfg, checkpoint, size)
    source = os.path.join(work_dir, 'float32.onnx')
    export_onnx(module, source, size, OPSET, module.outputs, fixed_size=True)
    normalise = module.model.data_preprocessor
    calibration = [normalise(dict(inputs=[image]))['inputs'].numpy() for image in images]
    return Quantization(module, source, calibration)


def quantize(backend: str, source: str, out: str, images: Sequence[np.ndarray]) -> None:
    """Quantise a classifier in an ONNX file.

    Args:
        backend (str): A key of :data:`BACKENDS`.
        source (str): ONNX file in float32.
        out (str): File to write, with the suffix of the backend; OpenVINO adds a ``.bin``.
        images (Sequence[ndarray]): Normalised, (1, C, H, W).
    """
    require_packages(*BACKENDS[backend].packages)
    BACKENDS[backend].quantize(source, out, images)


def files_of(path: str) -> list[str]:
    """The files that a model consists of; the one that names it comes last."""
    return [path] if not path.endswith('.xml') else [f'{path[:-4]}.bin', path]


class Labelled(NamedTuple):
    """A batch of test images, normalised, and their classes."""

    images: Tensor
    labels: Tensor


def labelled_images(
    cfg: Config, normalise: nn.Module, count: int, batch_size: int
) -> list[Labelled]:
    """Up to ``count`` images of the config's test data, evenly spaced, in batches."""
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    chosen = Subset(dataset, _spread(range(len(dataset)), count))
    batches = []
    for batch in DataLoader(chosen, batch_size, collate_fn=pseudo_collate):
        batch = normalise(batch)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        batches.append(Labelled(batch['inputs'], labels))
    return batches


def accuracy(run: Run, batches: Sequence[Labelled]) -> float:
    """Percentage of images whose largest logit is that of their class."""
    right = [
        torch.from_numpy(run(images.numpy())).argmax(dim=1) == labels for images, labels in batches
    ]
    return 100 * torch.cat(right).double().mean().item()
