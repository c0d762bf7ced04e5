"""Every command of the pages is one that its program takes."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs import programs
from tests.docs.pages import Block, Page, code_words, page, pages
from tests.docs.shell_text import ShellTextError, Statement, statements

_COMMAND = re.compile(r"[a-z][a-z-]*")
_SHELLS = {"bash", "shell", "console", "zsh", "sh"}


def shell_blocks() -> list[Block]:
    return [block for one in pages() for block in one.blocks() if block.language in _SHELLS]


def of(text: str) -> list[list[str]]:
    """Return the commands of a page that holds this text in its one block."""
    [block] = Page("page.md", f"```sh\n{text}\n```\n").blocks()
    return [words for statement in statements(block) for words in statement.commands()]


def test_every_block_of_shell_is_marked_sh() -> None:
    others = [block for block in shell_blocks() if block.language != "sh"]
    assert not others


def test_no_block_without_a_language_looks_like_commands() -> None:
    names = {*programs._JUDGES, *programs.READ_ONLY}
    unmarked = [
        f"{block.page}:{block.line}"
        for one in pages()
        for block in one.blocks()
        if block.language in {"", "text"} and {*block.text.split()[:1]} & names
    ]
    assert not unmarked


@pytest.mark.usefixtures("with_kubectl")
@pytest.mark.parametrize("name", [one.name for one in pages()])
def test_every_command_of_the_page_is_taken_by_its_program(name: str) -> None:
    blocks = [block for block in page(name).blocks() if block.language == "sh"]
    wrong = []
    for statement in (found for block in blocks for found in statements(block)):
        try:
            for words in statement.commands():
                programs.judge(words)
        except (programs.WrongCommandError, ShellTextError) as error:
            wrong.append(f"{name}:{statement.line}: {statement.text}\n  {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [one.name for one in pages()])
def test_every_command_named_in_a_sentence_is_one(name: str) -> None:
    wrong = []
    for code in code_words(page(name).prose()):
        words = code.split()
        if words[0] not in programs.OURS or not _COMMAND.fullmatch(" ".join(words[1:2])):
            continue
        try:
            programs.judge([*words[:2], "--help"])
        except programs.WrongCommandError as error:
            wrong.append(f"{code}: {error}")
    assert not wrong, "\n".join(wrong)


def test_each_command_that_is_only_read_is_still_in_a_page() -> None:
    used = Counter(
        words[0]
        for block in shell_blocks()
        for statement in statements(block)
        for words in statement.commands()
    )
    assert not [name for name in programs.READ_ONLY if not used[name]]


@pytest.mark.parametrize(
    "line",
    [
        "hsm-plugin generate-kek --kek-name x",
        "hsm-plugin make-kek",
        "k8s-kms-plugin import-ca",
        "vault-client --twice",
        "istiod-ca-bridge serve --now",
        "istio-hsm ceremony csr fetch --where x",
        "istio-hsm ceremony blow",
        "istio-hsm inject",
        "python -m bench nothing",
        "python -m no.such.module",
        "make coffee",
        "scripts/build-image.sh no-such-image",
        "scripts/no-such-script.sh",
        "some-program-that-nobody-knows",
        "true && hsm-plugin make-kek",
        "x=$(hsm-plugin make-kek)",
        "for id in 1 2; do hsm-plugin make-kek; done",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    wrong = next(words for words in of(line) if words != ["true"])
    with pytest.raises(programs.WrongCommandError):
        programs.judge(wrong)


@pytest.mark.usefixtures("with_kubectl")
@pytest.mark.parametrize(
    "line", ["kubectl get secrets --on istio-system", "kubectl fetch secrets", "kubectl label -n"]
)
def test_a_wrong_command_of_kubectl_is_found(line: str) -> None:
    with pytest.raises(programs.WrongCommandError, match="kubectl"):
        programs.judge(of(line)[0])


def test_text_that_bash_does_not_read_is_found() -> None:
    with pytest.raises(ShellTextError, match="bash does not read it"):
        of("if true; then echo")


def test_comments_assignments_pipes_and_redirections_are_no_arguments() -> None:
    assert of("A=b cmd one \\\n  two 2>/dev/null > out | next -x # why; exit 3") == [
        ["cmd", "one", "two"],
        ["next", "-x"],
    ]


def test_a_statement_ends_with_0_or_as_its_comment_says() -> None:
    assert Statement("p", 1, "istio-hsm plan   # what would change; exit 2").exit_codes() == {0, 2}
    assert Statement("p", 1, "istio-hsm plan").exit_codes() == {0}


def test_a_fence_in_a_list_loses_its_indent_and_one_that_is_not_closed_is_found() -> None:
    [block] = Page("p", "1. do\n\n   ```sh run\n   make demo\n   ```\n").blocks()
    assert (block.line, block.runs, block.text) == (4, frozenset({"run"}), "make demo\n")
    with pytest.raises(AssertionError, match="never closes"):
        Page("p", "```sh\nmake demo\n").blocks()


def test_what_kubectl_is_asked_comes_from_the_same_kubernetes(with_kubectl: Path) -> None:
    assert with_kubectl.name == "kubectl"
