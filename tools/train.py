"""Train a classifier, detector or segmentor from a config."""

import copy
from argparse import Namespace
from collections.abc import Callable

from mmhcnet.doctor import advised_imports

with advised_imports():
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.dist import is_main_process
    from mmengine.runner import Runner

    from mmhcnet.checkpoints.fitting import use_pretrained
    from mmhcnet.checkpoints.locate import resume_of_attempt
    from mmhcnet.cli.compile import check_compile, compiled
    from mmhcnet.cli.config import (
        add_tensorboard,
        check_data,
        check_optimizer,
        check_training,
        fuse_optimizer,
        load_config,
        use_constructor,
    )
    from mmhcnet.cli.lora import check_lora
    from mmhcnet.cli.main import run
    from mmhcnet.cli.parser import add_config, add_run, make_parser
    from mmhcnet.cli.schedule import run_length, validation_interval
    from mmhcnet.cli.trial import make_trial, report_trial
    from mmhcnet.datasets.check import absent_classes, stop_at_errors
    from mmhcnet.training.resumed_schedule import ResumedScheduleHook


def parse_args() -> Namespace:
    parser = make_parser(__doc__)
    add_config(parser)
    add_run(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='resume from a checkpoint; without PATH from the latest one in the work directory',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not validate')
    parser.add_argument(
        '--pretrained', metavar='CKPT', help='start the backbone from a classification checkpoint'
    )
    parser.add_argument(
        '--trial',
        type=int,
        metavar='N',
        help='try the config: N iterations, validation on at most 200 images, a '
        'checkpoint, and an estimate of the whole run',
    )
    parser.add_argument(
        '--tensorboard',
        action='store_true',
        help='log to TensorBoard too: tensorboard --logdir WORK_DIR',
    )
    args = parser.parse_args()
    for name in ('resume', 'pretrained'):
        if getattr(args, name) == '':
            parser.error(
                f'--{name} has an empty path, as from a variable of the shell that is not set'
            )
    if args.trial is not None and args.resume:
        parser.error('--trial starts from scratch: leave --resume out')
    return args


def build_config(args: Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_training(cfg)
    cfg.launcher = args.launcher
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if not args.no_data_check:
        check_data(cfg, ['train', 'val'])
    check_compile(args.compile, cfg, 'train', get_device())
    if args.amp:
        if get_device() == 'cpu':
            raise ValueError('--amp needs a GPU: leave it out on a machine without one')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config'
            )
        cfg.auto_scale_lr.enable = True
    if args.tensorboard:
        add_tensorboard(cfg)
    resume = resume_of_attempt(cfg, args.resume)
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    return cfg


def train(args: Namespace, cfg: Config, build_runner: Callable[[], Runner]) -> None:
    use_constructor(cfg)
    check_optimizer(cfg)
    check_lora(cfg)
    fuse_optimizer(cfg)
    if args.pretrained:
        use_pretrained(cfg, args.pretrained)
    # The others wait for this process, and end with it.
    if not args.no_data_check and is_main_process():
        stop_at_errors(cfg, ['train', 'val'])
    whole = copy.deepcopy(cfg)
    if args.trial is not None:
        planned, val_interval = run_length(cfg.train_cfg), validation_interval(cfg)
        make_trial(cfg, args.trial)
    runner = build_runner()
    runner.register_hook(ResumedScheduleHook())
    with compiled(runner, args.compile):
        runner.train()
    if args.trial is not None:
        report = report_trial(runner, planned, val_interval)
        if is_main_process():
            absent = [] if args.no_data_check else absent_classes(whole, ['train', 'val'])
            head = f'\nTrial of {args.config}: {args.trial} iterations'
            print('\n'.join([head, report, *absent]))


def main() -> None:
    run(parse_args, build_config, train)


if __name__ == '__main__':
    main()
