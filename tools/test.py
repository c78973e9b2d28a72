"""Evaluate a checkpoint of a classifier, detector or segmentor."""

import os
from argparse import Namespace
from collections.abc import Callable

from mmhcnet.doctor import advised_imports

with advised_imports():
    from mmengine.config import Config, ConfigDict
    from mmengine.device import get_device
    from mmengine.registry import METRICS
    from mmengine.runner import Runner

    from mmhcnet.checkpoints.fitting import StrictLoadHook
    from mmhcnet.cli.compile import check_compile, compiled
    from mmhcnet.cli.config import as_list, check_data, is_type, load_config
    from mmhcnet.cli.main import run
    from mmhcnet.cli.parser import add_config, add_run, at_least, make_parser
    from mmhcnet.errors import UserError


def parse_args() -> Namespace:
    parser = make_parser(__doc__)
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    add_run(parser)
    parser.add_argument(
        '--out', help='save the predictions: a .pkl file; for segmentation a folder of label maps'
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir',
        help='save pictures with predictions drawn to this folder '
        '(segmentation: to vis_data/vis_image in it)',
    )
    parser.add_argument(
        '--interval', type=at_least(1), default=1, help='draw every N-th image (default: 1)'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def draw(cfg: Config, args: Namespace) -> None:
    """Turn the visualisation hook of the task on."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(show=args.show, wait_time=args.wait_time, interval=args.interval)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, out_dir=args.show_dir)
    else:
        hook['draw'] = True
        if args.show_dir and cfg.default_scope == 'mmdet':
            # Otherwise below the work directory.
            hook['test_out_dir'] = os.path.abspath(args.show_dir)
        elif args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
        if args.interval > 1:
            cfg.default_hooks.visualization = dict(
                type='mmhcnet.DrawEveryHook', interval=args.interval, hook=hook
            )


def augment(cfg: Config) -> None:
    """Wrap the model and the pipeline in those for test-time augmentation."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ValueError(
            '--tta needs tta_model and tta_pipeline in the config (mmdet has no '
            'test-time augmentation for masks)'
        )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def build_config(args: Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if not os.path.isfile(args.checkpoint):
        raise FileNotFoundError(f"no checkpoint file '{args.checkpoint}'")
    if not args.no_data_check:
        check_data(cfg, ['test'])
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        draw(cfg, args)
    if args.tta:
        augment(cfg)
    check_compile(args.compile, cfg, 'test', get_device())
    if args.out and cfg.default_scope == 'mmseg':
        metric = next(
            (metric for metric in as_list(cfg.test_evaluator) if is_type(metric, 'IoUMetric')), None
        )
        if metric is None:
            raise UserError('--out needs an IoUMetric in test_evaluator, which writes label maps')
        metric.update(output_dir=args.out, keep_results=True)
    elif args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f"--out must end in .pkl for this task, got '{args.out}'")
    return cfg


def test(args: Namespace, cfg: Config, build_runner: Callable[[], Runner]) -> None:
    runner = build_runner()
    runner.register_hook(StrictLoadHook())
    if args.out and cfg.default_scope != 'mmseg':
        # mmdet's writes masks run-length encoded.
        dump = 'mmdet.DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(METRICS.build(dict(type=dump, out_file_path=args.out)))
    with compiled(runner, args.compile):
        runner.test()


def main() -> None:
    run(parse_args, build_config, test)


if __name__ == '__main__':
    main()
