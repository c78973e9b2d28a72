"""What training and testing do around their runner."""

import os
from argparse import Namespace
from collections.abc import Callable

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmhcnet.checkpoints.reader import load_safely
from mmhcnet.errors import UserError
from mmhcnet.training.tolerant_logs import tolerate_errors

from .distributed import check_launcher, prepare_distributed
from .early_log import early_log
from .ending import ends_on_sigterm, orderly_end
from .errors import FirstStep, import_task, one_line_errors


def run(
    parse_args: Callable[[], Namespace],
    build_config: Callable[[Namespace], Config],
    start: Callable[[Namespace, Config, Callable[[], Runner]], None],
) -> None:
    """Run a tool: parse, build the config, start a runner; an error ends it with one line.

    SIGTERM ends it with exit code 75 before the first iteration, too.

    Args:
        parse_args (Callable): Gives the arguments of ``mmhcnet.cli.parser.add_run`` and the
            tool's own.
        build_config (Callable): Gives the config of the run; what it checks fails before any
            model is imported.
        start (Callable): Is given the arguments, the config and a function without arguments
            that builds the runner of the config.
    """
    args, cfg, runner, first_step = None, None, None, FirstStep()

    with (
        one_line_errors(
            log_dir=lambda: cfg.work_dir if cfg else args and args.work_dir,
            begun=lambda: first_step.done,
            config=lambda: args and args.config,
            whole=lambda: args is not None and args.traceback,
        ),
        orderly_end(lambda: runner),
        ends_on_sigterm(),
        early_log() as hand_over,
    ):
        args = parse_args()
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        load_safely(args.trust_checkpoint)
        check_launcher(args.launcher)
        cfg = build_config(args)
        import_task(cfg.get('default_scope'))
        prepare_distributed(cfg)
        # Not RUNNERS.build, which takes the default scope back from the runner that it has built.
        kind = RUNNERS.get(cfg.get('runner_type', 'Runner'))
        if kind is None:
            raise UserError(
                f"runner_type '{cfg.runner_type}' is not in the registry of runners: leave it out, "
                "or name the module that registers it in the config's custom_imports"
            )

        def build_runner() -> Runner:
            nonlocal runner
            runner = kind.from_cfg(cfg)
            runner.register_hook(first_step)
            tolerate_errors(runner.logger)
            hand_over(runner.logger)
            return runner

        start(args, cfg, build_runner)
