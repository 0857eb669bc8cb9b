"""The files of the images and services in docker/; docker/smoke-test.sh tests the containers themselves."""

from __future__ import annotations

import configparser
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bmlpipe.manifests import places

FOLDER = Path(__file__).resolve().parents[2] / "docker"
ROOT = FOLDER.parent
_VARIABLE = re.compile(r"\$\{(\w+)(?::?-((?:[^{}])*))?\}")


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def filled(value: Any, values: dict[str, str]) -> Any:
    """Replace the variables in a part of a compose file, as compose does."""
    if isinstance(value, dict):
        return {name: filled(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, values) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: values.get(found[1]) or found[2] or "", value)
    return value


def environment() -> dict[str, str]:
    """Read the variables of .env.example."""
    lines = (FOLDER / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@cache
def services() -> dict[str, Any]:
    found: dict[str, Any] = filled(read("compose.yaml")["services"], environment())
    return found


@cache
def instructions() -> list[tuple[str, str]]:
    """Read the instructions of the Dockerfile and their arguments, without comments and continuation lines."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split()[-1]] = []
        if found:
            found[list(found)[-1]].append((word, rest))
    return found


def words(value: str | list[str]) -> list[str]:
    return shlex.split(value) if isinstance(value, str) else list(value)


def bmlpipe_command(name: str) -> click.Command:
    if name == "train":
        from bmlpipe.train.run import main as training

        return training
    from bmlpipe.pipeline.cli import main

    return main.commands[name]


# ----- the images -----


def test_every_target_that_compose_builds_is_a_stage() -> None:
    built = {service["build"]["target"] for service in services().values() if "build" in service}
    assert built == {"pipeline", "train"} <= stages().keys()


def test_every_build_argument_is_declared_and_its_default_is_the_same_everywhere() -> None:
    declared = dict(rest.partition("=")[::2] for word, rest in instructions() if word == "ARG" and "=" in rest)
    for service in services().values():
        for name, value in service.get("build", {}).get("args", {}).items():
            assert value == declared[name].replace("${PYTHON}", declared["PYTHON"]), name
    bare: dict[str, Any] = filled(read("compose.yaml")["services"], {})
    assert bare["train"]["build"]["args"] == services()["train"]["build"]["args"]


@pytest.mark.parametrize("target", ["pipeline", "train"])
def test_an_image_has_a_user_a_health_check_and_labels(target: str) -> None:
    stage = stages()[target]
    assert ("USER", "10001:10001") in stage
    assert [word for word, _ in stage].index("USER") < [word for word, _ in stage].index("ENTRYPOINT")
    assert any(word == "HEALTHCHECK" and "CMD" in rest for word, rest in stage)
    labels = next(rest for word, rest in stage if word == "LABEL")
    assert 'image.version="${VERSION}"' in labels
    assert 'image.revision="${COMMIT}"' in labels


def test_the_version_label_is_that_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    versions = {rest for word, rest in instructions() if word == "ARG" and rest.startswith("VERSION=")}
    assert versions == {f"VERSION={setup['metadata']['version']}"}


def test_files_copied_into_the_image_exist_in_the_context() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(Path(source).match(pattern) for pattern in allowed), source


def test_every_package_of_the_namespace_is_copied() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    copied = {rest.split()[0] for word, rest in instructions() if word == "COPY"}
    assert {line.partition("=")[2].strip() for line in setup["options"]["package_dir"].split("\n") if line} <= copied


def test_requirements_are_those_of_the_package_and_its_extras() -> None:
    requirements = runpy.run_path(str(FOLDER / "requirements.py"))["requirements"]
    found = requirements(str(ROOT / "setup.cfg"), ["http"])
    assert {"torch>=2.4", "aiohttp>=3.9"} <= set(found)
    assert not any(line.startswith(("pytest", "s3fs")) for line in found)
    with pytest.raises(KeyError):
        requirements(str(ROOT / "setup.cfg"), ["nothing"])


def test_no_file_contains_a_secret() -> None:
    secret = re.compile(r"(?i)(password|passwd=|secret|token|api_?key|://[^/\s]+:[^/\s]+@)")
    for path in FOLDER.iterdir():
        assert not secret.search(path.read_text(encoding="utf-8")), path.name


# ----- the services -----


def test_all_services_are_defined() -> None:
    assert set(services()) == {
        *("scheduler", "worker", "extract", "shard", "verify", "train", "report", "tensorboard", "reports")
    }


def test_env_example_names_every_variable_and_no_other() -> None:
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in ("compose.yaml", "compose.cpu.yaml")]
    used = {found[1] for text in texts for found in _VARIABLE.finditer(text)}
    assert environment().keys() - {"COMPOSE_FILE", "COMPOSE_PROJECT_NAME"} == used


def test_the_files_that_env_example_names_exist() -> None:
    for file in environment()["COMPOSE_FILE"].split(":"):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", ["extract", "shard", "verify", "report", "train"])
def test_the_command_of_a_service_accepts_its_options(name: str) -> None:
    service, command = services()[name], bmlpipe_command(name)
    start = ["bmlpipe", name]
    if name == "train":
        start = ["torchrun", "--standalone", "--nproc-per-node", "gpu", "-m", "bmlpipe.train"]
    assert service["entrypoint"] == start  # `docker compose run NAME …` takes the options of the command
    known = {option for parameter in command.params for option in parameter.opts}
    given = [word for word in words(service["command"]) if word.startswith("--")]
    assert set(given) <= known
    mounted = {volume["target"] for volume in service["volumes"]}
    for word in words(service["command"]):
        if re.match(r"[a-z]+/", word):
            assert f"{service['working_dir']}/{word.split('/')[0]}" in mounted, word


def test_the_conventional_places_are_mounted_in_the_services() -> None:
    """Each command reads and writes files where the next one expects them, without options."""
    targets = {Path(volume["target"]).name for service in services().values() for volume in service.get("volumes", [])}
    assert {str(place) for place in (places.DATA, places.FEATURES, places.SHARDS, places.RUNS)} < targets
    for service in services().values():
        for volume in service.get("volumes", []):
            assert Path(volume["target"]).name == Path(volume["source"]).name
            assert Path(volume["target"]).parent in (Path(service["working_dir"]), Path("/"))
    assert words(services()["extract"]["command"])[-2:] == ["--dataset", "vggsound"]
    assert words(services()["shard"]["command"]) == ["--dataset", "vggsound"]


def test_the_commands_of_the_dask_services_accept_their_options() -> None:
    from distributed.cli import dask_scheduler, dask_worker

    for name, command in (("scheduler", dask_scheduler.main), ("worker", dask_worker.main)):
        program, sub, *rest = services()[name]["entrypoint"]
        assert (program, sub) == ("dask", name)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


def test_videos_are_read_only_and_workers_have_the_mounts_of_the_extraction() -> None:
    for name, service in services().items():
        for volume in service.get("volumes", []):
            if volume["target"] == "/work/data":
                assert volume["read_only"] is True, name
    assert services()["worker"]["volumes"] == services()["extract"]["volumes"]
    for name in ("tensorboard", "reports"):
        assert all(volume["read_only"] for volume in services()[name]["volumes"])


def test_every_service_runs_unprivileged_as_the_caller_and_restarts() -> None:
    for name, service in services().items():
        assert service["user"] == "1000:1000", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        assert service["restart"] in ("on-failure:10", "unless-stopped"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert "--resume" in words(services()["train"]["command"])


def test_each_service_waits_for_the_preceding_one() -> None:
    order = ["extract", "shard", "verify", "train", "report"]
    for before, after in itertools.pairwise(order):
        assert services()[after]["depends_on"] == {before: {"condition": "service_completed_successfully"}}


def test_training_uses_all_gpus_and_shared_memory_and_has_an_override_for_cpus() -> None:
    train = services()["train"]
    assert train["shm_size"] == "8gb"
    gpu = read("compose.gpu.yaml")["services"]["train"]
    assert gpu["ulimits"] == {"memlock": -1, "stack": 64 << 20, "nofile": 65536}
    devices = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    override = filled(read("compose.cpu.yaml")["services"]["train"], environment())
    assert override["entrypoint"] == ["2" if word == "gpu" else word for word in train["entrypoint"]]
    assert override["build"]["args"]["TRAIN_TORCH_INDEX"].endswith("/cpu")
    assert override["image"] != train["image"]


# ----- with compose and the linters, where they are installed -----


def _compose() -> list[str]:
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("neither docker compose nor docker-compose is installed")


@pytest.mark.parametrize("other", ["gpu", "cpu"])
def test_compose_accepts_the_files(other: str) -> None:
    files = ["-f", "docker/compose.yaml", "-f", f"docker/compose.{other}.yaml"]
    done = subprocess.run(
        [*_compose(), "--env-file", "docker/.env.example", *files, "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    assert ("deploy" in found["train"]) == (other == "gpu")
    assert found["extract"]["entrypoint"] == ["bmlpipe", "extract"]
    assert Path(found["train"]["build"]["context"]) == ROOT


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("hadolint", ["Dockerfile"]), ("shellcheck", ["base.sh", "code.sh", "packages.sh", "smoke-test.sh"])],
)
def test_linters_report_nothing(program: str, arguments: list[str]) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_the_smoke_test_is_skipped_with_a_reason_without_an_engine(tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    done = subprocess.run(
        ["bash", str(FOLDER / "smoke-test.sh"), str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "DOCKER": "no-such-docker"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "skipped: there is no program no-such-docker\n")
