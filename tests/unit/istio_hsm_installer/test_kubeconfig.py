"""A kubeconfig that is none is an error with a hint, and is not quoted."""

from pathlib import Path

import pytest

from istio_hsm_installer import kube
from istio_hsm_installer.errors import KubeUnreachableError


@pytest.mark.parametrize(
    "text",
    ["", "[]", "canary", "users:\n- token: canary: [x\n", "clusters: 5\n", "\x00", "a: &a [*a]\n"],
)
def test_a_file_that_is_no_kubeconfig_is_told_as_such(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(KubeUnreachableError, match="no cluster to talk to") as caught:
        kube.connect(path, None)
    assert "canary" not in str(caught.value)
    assert caught.value.hint
