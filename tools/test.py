"""Evaluate a checkpoint of a classifier, detector or segmentor."""
import argparse
import os
import sys

try:
    from mmengine.config import Config, ConfigDict
    from mmengine.registry import METRICS, RUNNERS

    from mmhcnet.checkpoints.fit import StrictLoadHook
    from mmhcnet.checkpoints.reader import load_safely
    from mmhcnet.cli.config import Options, check_data, load_config
    from mmhcnet.cli.distributed import prepare_distributed
    from mmhcnet.cli.ending import orderly_end
    from mmhcnet.cli.errors import FirstStep, import_task, one_line_errors
except (ImportError, OSError) as error:
    sys.exit(f'Error: {error}. "python -m mmhcnet.doctor" names what is wrong in this environment '
             'and the command that mends it.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for logs '
                        '(default: work_dirs/<name of the config>)')
    parser.add_argument('--out', help='save the predictions: a .pkl file; for segmentation a '
                        'folder of label maps')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='save pictures with predictions drawn to this folder '
                        '(below the work directory for detection and segmentation)')
    parser.add_argument('--interval', type=int, default=1,
                        help='draw every so many-th image (default: 1)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='load checkpoints that hold more than weights and may run programs')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
                        help='override settings of the config')
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def draw(cfg: Config, args: argparse.Namespace) -> None:
    """Turn the visualisation hook of the task on."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(show=args.show, wait_time=args.wait_time, interval=args.interval)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, out_dir=args.show_dir)
    else:
        hook['draw'] = True
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir


def augment(cfg: Config) -> None:
    """Wrap the model and the pipeline in those for test-time augmentation."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ValueError('--tta needs tta_model and tta_pipeline in the config (mmdet has no '
                         'test-time augmentation for masks)')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def build_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if not os.path.isfile(args.checkpoint):
        raise FileNotFoundError(f"no checkpoint file '{args.checkpoint}'")
    check_data(cfg, ['test'])
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        draw(cfg, args)
    if args.tta:
        augment(cfg)
    if args.out and cfg.default_scope == 'mmseg':
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    elif args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f"--out must end in .pkl for this task, got '{args.out}'")
    return cfg


def main() -> None:
    cfg, runner, first_step = None, None, FirstStep()
    with one_line_errors(lambda: cfg and cfg.work_dir, lambda: first_step.done), \
            orderly_end(lambda: runner):
        args = parse_args()
        load_safely(args.trust_checkpoint)
        cfg = build_config(args)
        import_task(cfg.get('default_scope'))
        prepare_distributed(cfg)
        # Not RUNNERS.build, which takes the default scope back from the runner that it has built.
        runner = RUNNERS.get(cfg.get('runner_type', 'Runner')).from_cfg(cfg)
        runner.register_hook(first_step)
        runner.register_hook(StrictLoadHook())
        if args.out and cfg.default_scope != 'mmseg':
            # mmdet's writes masks run-length encoded.
            dump = 'mmdet.DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
            runner.test_evaluator.metrics.append(
                METRICS.build(dict(type=dump, out_file_path=args.out)))
        runner.test()


if __name__ == '__main__':
    main()
