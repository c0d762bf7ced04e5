"""`istio-hsm check`: the preflight."""

from dataclasses import asdict

from istio_hsm_installer import preflight, screen
from istio_hsm_installer.exits import EXIT_FINDINGS, EXIT_FINE
from istio_hsm_installer.screen import Output
from istio_hsm_installer.wiring import (
    DEFAULT_CONFIG,
    ConfigOption,
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    OutputOption,
    Target,
    load_options,
)


def check_command(
    config: ConfigOption = DEFAULT_CONFIG,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Look for what stands in the way of apply; change nothing. Findings exit with 79."""
    options = load_options(config, namespace)
    seen = preflight.run(options, Target(context, kubeconfig).connect)
    code = EXIT_FINDINGS if seen.findings else EXIT_FINE
    if output is Output.JSON:
        found = [asdict(finding) for finding in seen.findings]
        screen.as_json({"findings": found, "skipped": list(seen.skipped)})
        return code
    for group in preflight.GROUPS:
        here = [finding for finding in seen.findings if finding.group == group]
        if group in seen.skipped and not here:
            screen.say(f"? {group}: not looked at", "yellow")
        else:
            screen.say(f"{'!' if here else '='} {group}", "bold yellow" if here else "green")
        for finding in here:
            screen.say(f"    {finding.cause}")
            screen.say(f"    hint: {finding.hint}", "cyan")
            screen.say(f"    see:  {finding.link}", "dim")
    count = len(seen.findings)
    screen.say(f"{count} found" if count else "nothing stands in the way", "bold")
    return code
