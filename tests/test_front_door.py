"""What users type: `python -m sere_jax`, the help of all programs, and every command in the documents."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

from sere_jax import __main__ as front
from sere_jax.config import command_line

ROOT = Path(__file__).resolve().parent.parent
_COMMAND = re.compile(r"^(?:Launch|[^`#|]*?: )?\s*(?:\w+=\S+ |taskset -c 0 |\$\(BIN\)/)*python (train\.py|eval\.py|-m sere_jax) (.*)$")


class _Parser(Exception):
    """Carries the parser of a command out of its `main`."""


def _parser(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def stop(self: argparse.ArgumentParser, *_: object) -> None:
        raise _Parser(self)

    module = importlib.import_module(f"sere_jax.commands.{front.COMMANDS[name][0]}")
    with monkeypatch.context() as patch, pytest.raises(_Parser) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        module.main([])
    return caught.value.args[0]


def _flags(program: str) -> flags.FlagValues:
    """The flags that a program's source defines, in a set of their own: two programs in one process would clash."""
    values = flags.FlagValues()
    command_line.define_config(values)
    for node in ast.walk(ast.parse((ROOT / program).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            arguments = [ast.literal_eval(argument) for argument in node.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            getattr(flags, node.func.attr)(*arguments, flag_values=values, **named)
    return values


def _commands() -> Iterator[tuple[str, str, str]]:
    """(file, program, arguments) of the commands in code blocks, without templates such as `[--step=S]` and `...`."""
    paths = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").rglob("*.py"))]
    for path in paths:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            match = _COMMAND.match(line)
            if match and not re.search(r"\.\.\.|\[|`|\bCOMMAND\b", match[2]):
                yield str(path.relative_to(ROOT)), match[1], match[2].replace("$(DEMO)", "DEMO").removesuffix("&").strip()


COMMANDS = list(dict.fromkeys(_commands()))


def test_the_commands_of_the_documents_are_found():
    programs = [program for _, program, _ in COMMANDS]
    assert {program: programs.count(program) > 8 for program in programs} == {"train.py": True, "eval.py": True, "-m sere_jax": True}
    assert {"README.md", "docs/data.md", "docs/evaluation.md", "docs/weights.md", "configs/small.py"} <= {file for file, _, _ in COMMANDS}


@pytest.mark.parametrize(("file", "program", "arguments"), COMMANDS)
def test_a_command_of_a_document_parses(file, program, arguments, monkeypatch):
    tokens = shlex.split(arguments, comments=True)
    if program == "-m sere_jax":
        _parser(tokens[0], monkeypatch).parse_args(tokens[1:])  # exits where an option or a choice does not exist
        return
    _, mistakes = command_line.preflight([program, *tokens], ("config", "workdir"), _flags(program))
    assert mistakes == []


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_option_has_its_meaning(name, monkeypatch):
    parser = _parser(name, monkeypatch)
    assert parser.prog == f"python -m sere_jax {name}" and parser.description
    assert [action.option_strings for action in parser._actions if not action.help] == []


@pytest.mark.parametrize(
    ("program", "directory", "document"), [("train.py", "configs", "config"), ("eval.py", "configs/eval", "evaluation")]
)
def test_help_of_the_programs_names_the_configs_and_where_the_keys_are_explained(program, directory, document):
    result = subprocess.run([sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True)
    text = re.sub(r"\s+", " ", result.stdout)
    assert "--config:" in text and f"docs/{document}.md" in text and (ROOT / "docs" / f"{document}.md").is_file()
    files = [path.name for path in (ROOT / directory).glob("*.py") if not path.name.startswith("common")]
    assert files and all(f"{directory}/{name}" in text for name in files)


def test_help_lists_the_commands(capsys):
    assert front.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and meaning in text for name, (_, meaning) in front.COMMANDS.items())
    assert front.main([]) == 2 and capsys.readouterr().out == text


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    assert front.main(["exprot"]) == 2
    assert capsys.readouterr().err.endswith("; nearest: export\n")


def test_ctrl_c_ends_a_command_with_one_line(monkeypatch, capsys):
    def interrupted(options: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sere_jax.commands.export_command.main", interrupted)
    assert front.main(["export", "--checkpoint=x"]) == 130
    assert capsys.readouterr() == ("", "export: interrupted\n")


def test_ctrl_c_ends_an_evaluation_with_one_line(tmp_path):
    """The signal comes as soon as the program has spoken, while JAX is imported."""
    file = tmp_path / "x.npz"
    file.touch()
    command = [sys.executable, "eval.py", "--config=configs/eval/knn.py:bundled", f"--checkpoint={file}", f"--workdir={tmp_path}/out"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(f"evaluating {file}")
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert (process.returncode, errors) == (130, "eval.py: interrupted\n")


BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "input_peers")  # what input_pipeline imports


def test_documents_run_benchmarks_as_modules():
    """`python benchmarks/NAME.py` would not find the package in a clone."""
    paths = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.py")]
    texts = {path: path.read_text() for path in paths}
    assert not [path for path, text in texts.items() if re.search(r"python\S* benchmarks/", text)]
    assert {name for text in texts.values() for name in re.findall(r"-m benchmarks\.(\w+)", text)} == set(BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_from_the_clone(name: str):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
