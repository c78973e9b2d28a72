"""Train a classifier, detector or segmentor from a config."""
import argparse
import os
import sys

try:
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.dist import is_main_process
    from mmengine.registry import RUNNERS

    from mmhcnet.checkpoints.fit import use_pretrained
    from mmhcnet.checkpoints.locate import resume_of_attempt
    from mmhcnet.checkpoints.reader import load_safely
    from mmhcnet.cli.config import Options, add_tensorboard, check_data, check_training, load_config
    from mmhcnet.cli.distributed import prepare_distributed
    from mmhcnet.cli.ending import orderly_end
    from mmhcnet.cli.errors import FirstStep, import_task, one_line_errors
    from mmhcnet.cli.schedule import run_length
    from mmhcnet.cli.trial import make_trial, report_trial
except (ImportError, OSError) as error:
    sys.exit(f'Error: {error}. "python -m mmhcnet.doctor" names what is wrong in this environment '
             'and the command that mends it.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints '
                        '(default: work_dirs/<name of the config>)')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='PATH',
                        help='resume from a checkpoint; without PATH from the latest one in the '
                        'work directory')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the total batch size')
    parser.add_argument('--no-validate', action='store_true', help='do not validate')
    parser.add_argument('--pretrained', metavar='CKPT',
                        help='start the backbone from a classification checkpoint')
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='load checkpoints that hold more than weights and may run programs')
    parser.add_argument('--trial', type=int, metavar='N',
                        help='try the config: N iterations, validation on a few batches, a '
                        'checkpoint, and an estimate of the whole run')
    parser.add_argument('--tensorboard', action='store_true',
                        help='log to TensorBoard too: tensorboard --logdir WORK_DIR')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
                        help='override settings of the config, e.g. '
                        'train_dataloader.batch_size=4 model.backbone.arch=small')
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trial is not None and args.resume:
        parser.error('--trial starts anew: leave --resume out')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_training(cfg)
    cfg.launcher = args.launcher
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    check_data(cfg, ['train', 'val'])
    if args.amp:
        if get_device() == 'cpu':
            raise ValueError('--amp needs a GPU: leave it out on a machine without one')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in '
                             'the config')
        cfg.auto_scale_lr.enable = True
    if args.tensorboard:
        add_tensorboard(cfg)
    resume = resume_of_attempt(cfg, args.resume)
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
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
        if args.pretrained:
            use_pretrained(cfg, args.pretrained)
        if args.trial is not None:
            planned, val_interval = run_length(cfg.train_cfg), cfg.train_cfg.get('val_interval', 1)
            make_trial(cfg, args.trial)
        # Not RUNNERS.build, which takes the default scope back from the runner that it has built.
        runner = RUNNERS.get(cfg.get('runner_type', 'Runner')).from_cfg(cfg)
        runner.register_hook(first_step)
        runner.train()
        if args.trial is not None:
            report = report_trial(runner, planned, val_interval)
            if is_main_process():
                print(f'\nTrial of {args.config}: {args.trial} iterations\n{report}')


if __name__ == '__main__':
    main()
