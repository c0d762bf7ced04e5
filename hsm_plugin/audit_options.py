"""Options of `serve` that say where the audit log is and how it is kept."""

import argparse
from collections.abc import Mapping

from hsm_plugin import config, durations
from hsm_plugin.audit_log import AuditSettings


def add(server: argparse.ArgumentParser, env: Mapping[str, str]) -> None:
    """Add them to the parser of `serve`."""
    server.add_argument(
        "--audit-log",
        default=env.get("AUDIT_LOG", ""),
        help="the file that records each use of a key (AUDIT_LOG; off)",
    )
    server.add_argument(
        "--audit-on-failure",
        default=env.get("AUDIT_ON_FAILURE", "refuse"),
        help="refuse or drop: calls, or entries, that cannot be recorded "
        "(AUDIT_ON_FAILURE; refuse)",
    )
    server.add_argument(
        "--audit-max-mib", type=int, default=64, help="size of a file (%(default)s MiB)"
    )
    server.add_argument(
        "--audit-checkpoint-entries",
        type=int,
        default=1000,
        help="entries until the token signs the log (%(default)s)",
    )
    server.add_argument(
        "--audit-checkpoint-every",
        type=durations.seconds,
        default=60.0,
        help="at the latest, when there are entries (60s)",
    )


def settings_of(options: argparse.Namespace) -> AuditSettings | None:
    """Return the settings; None without a log. ConfigError for what cannot work."""
    return config.audit_settings(
        options.audit_log,
        options.audit_on_failure,
        options.audit_max_mib,
        options.audit_checkpoint_entries,
        options.audit_checkpoint_every,
    )
