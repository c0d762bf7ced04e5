"""Istio itself, by istioctl."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer import istioctl, programs
from istio_hsm_installer.differences import between
from istio_hsm_installer.documents import to_yaml
from istio_hsm_installer.errors import ToolError
from istio_hsm_installer.files import read_pem
from istio_hsm_installer.objects import Document, Ref, entries, named, section
from istio_hsm_installer.options import Flavour, Mode, Options
from istio_hsm_installer.steps.step import Action, Area, Change, World

_WAIT_SECONDS = "10s"
"""istiod is not ready before the ceremony; waiting longer for it would be in vain."""


@dataclass(frozen=True, slots=True)
class Istio:
    """Runs istioctl when istiod's Deployment is not as it should be."""

    options: Options
    name: str = "istio"
    title: str = "Istio, with its CA key in the HSM's care"
    area: Area = Area.ISTIO
    hint: str = "run the command by hand to see what istioctl says"

    def check(self, world: World) -> None:
        """Nothing: a missing istioctl leaves a command to a person, and stops nothing else."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the command when it is needed, and what is not as it should be."""
        deployment = world.kube.read(self._ref)
        wanted = self._wanted()
        found = None if deployment is None else _facts(deployment, wanted)
        changed = between(found, wanted)
        if not changed:
            return []
        command = istioctl.as_text([self.options.istio.istioctl, *self._install(world)])
        action = Action.CREATE if deployment is None else Action.RUN
        return [Change(action, str(self._ref), changed, command)]

    def apply(self, world: World) -> None:
        """Run istioctl; its exit code counts only if istiod is not as it should be then."""
        is_upstream = self.options.istio.flavour is Flavour.UPSTREAM
        ended = programs.run(
            [self.options.istio.istioctl, *self._install(world)],
            stdin=to_yaml(overlay(self.options)) if is_upstream else "",
            environment={"WAIT_FOR_RESOURCES_TIMEOUT": _WAIT_SECONDS},
        )
        if ended.code and self.plan(world):
            raise ToolError(f"istioctl install failed: {ended.last_words}", hint=self.hint)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Uninstall the revision if it was installed here."""
        if world.kube.read(self._ref) is None:
            return []
        if str(self._ref) not in created:
            return [f"{self._ref} was there before"]
        command = [*istioctl.uninstall(self.options), "--skip-confirmation", *world.istioctl_flags]
        ended = programs.run([self.options.istio.istioctl, *command])
        if ended.code:
            raise ToolError(f"istioctl uninstall failed: {ended.last_words}", hint=self.hint)
        return []

    def _install(self, world: World) -> Sequence[str]:
        wait = [] if self.options.istio.flavour is Flavour.ASM else ["--readiness-timeout", "10s"]
        arguments = istioctl.install(self.options)
        return [*arguments, "--skip-confirmation", *wait, *world.istioctl_flags]

    def _wanted(self) -> Document:
        images = istioctl.expected_images(self.options)
        return {
            name: {"image": images[name], **environment} if name in images else environment
            for name, environment in sorted(istioctl.expected_env(self.options).items())
        }

    @property
    def _ref(self) -> Ref:
        return Ref("Deployment", self.options.istiod_name, self.options.istio.namespace, "apps/v1")


def overlay(options: Options) -> Document:
    """Return upstream's overlay; mode csr-signer tells istiod the root of hsm.rootCertFile."""
    is_told = options.mode is Mode.CSR_SIGNER
    root = read_pem(options.hsm.root_cert_file).decode("ascii") if is_told else ""
    return istioctl.operator_overlay(options, root)


def _facts(deployment: Document, wanted: Document) -> Document:
    """Return what the Deployment says on the wanted facts of the wanted containers."""
    pod = section(deployment, "spec", "template", "spec")
    containers = [*entries(pod, "containers"), *entries(pod, "initContainers")]
    return {
        name: {
            key: container.get("image")
            if key == "image"
            else named(entries(container, "env"), key).get("value")
            for key in section(wanted, name)
        }
        for name in wanted
        if (container := named(containers, name))
    }
