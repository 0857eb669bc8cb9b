#!/usr/bin/env bash
# Test of all steps in containers: build both images, run the services of compose.yaml on up to twenty of your clips and
# sixty synthetic ones, kill a worker, the extraction and the training while they run, and compare the results with
# those of an undisturbed run of the same commands. Then start the finished services again, which must change nothing.
#
#   docker/smoke-test.sh CLIPS [FOLDER]
#
# CLIPS: a folder of video files. FOLDER: an empty folder for all files, which is kept; default: a temporary folder.
# Environment: DOCKER (default: docker); PYTHON, BASE and TORCH_INDEX as in .env.example; BUILD_NETWORK (default:
# default); SMOKE_USER, the user id of the services (default: the caller's; for root 10001).
# Exit status: 0 if the test passed or was skipped, with a message; 1 if it failed.
set -euo pipefail
cd "$(dirname "$0")/.."
clips=${1:?folder of video files}
docker=${DOCKER:-docker}

skip() { echo "skipped: $*"; exit 0; }
say() { echo "== $(date +%T) $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

command -v "$docker" > /dev/null || skip "there is no program $docker"
"$docker" info > /dev/null 2>&1 || skip "no Docker engine answers: $docker info fails"
if "$docker" compose version > /dev/null 2>&1; then compose_program=("$docker" compose)
elif command -v docker-compose > /dev/null; then compose_program=(docker-compose)
else skip "there is neither docker compose nor docker-compose"; fi
export PYTHON=${PYTHON:-3.12} TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
export BASE=${BASE:-python:$PYTHON-slim-bookworm} COMMIT
COMMIT=$(git rev-parse HEAD)
"$docker" image inspect "$BASE" > /dev/null 2>&1 || "$docker" pull --quiet "$BASE" ||
    skip "there is no base image $BASE and it cannot be pulled: see docs/docker.md, Without a registry"

work=${2:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
[ -z "$(ls -A "$work")" ] || fail "$work is not empty"
user=${SMOKE_USER:-$(id -u)}
[ "$user" != 0 ] || user=10001
if [ "$user" = "$(id -u)" ]; then group=$(id -g); else group=$user; fi
image=bmlpipe-smoke
mkdir -p "$work"/data/folder/{videos,annotations} "$work"/{features,shards,runs,cache,plain}

cat > "$work/env" << EOF
COMPOSE_PROJECT_NAME=bmlpipe-smoke
IMAGE=$image
PROJECT=$work
USER_ID=$user
GROUP_ID=$group
DATASET=folder
RUN=smoke
EXTRACT=--seconds 3 --short-side 64 --max-failed 1 --clips-per-task 1
SHARD=--samples-per-shard 20
TRAIN=--modulation opm --encoder cnn4 --image-size 64 --epochs 2 --batch-size 2 --workers 1 --checkpoint-every 1
WORKER_MEMORY=1GiB
TENSORBOARD_PORT=16006
REPORTS_PORT=18000
EOF
compose() {
    "${compose_program[@]}" --env-file "$work/env" -f docker/compose.yaml -f docker/compose.cpu.yaml "$@"
}
# Run a command in an image without compose, on the same folders.
plain() {
    local tag=$1 entry=$2
    shift 2
    "$docker" run --rm --interactive --init --user "$user:$group" --shm-size 1g --env OMP_NUM_THREADS=1 \
        --volume "$work:/work" \
        --entrypoint "$entry" "$image:$tag" "$@"
}
finish() {
    status=$?
    [ $status = 0 ] || { compose ps --all; compose logs --tail 30; } >&2 || true
    compose --profile watch down --timeout 5 > /dev/null 2>&1 || true
    [ -n "${2:-}" ] || rm -rf "$work"
    exit $status
}
trap 'finish "$@"' EXIT

# Filter a list of files, separated by zero bytes, for those that exist: git also lists files whose deletion is not
# committed.
present() { while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done; }

say "build both images for commit $COMMIT from the files that git does not ignore"
for target in pipeline train-cpu; do
    git ls-files -z --cached --others --exclude-standard | present | tar --null -cT - |
        "$docker" build --quiet --network "${BUILD_NETWORK:-default}" --file docker/Dockerfile \
            --target "${target%-cpu}" --tag "$image:$target" --build-arg PYTHON --build-arg BASE \
            --build-arg TRAIN_BASE="$BASE" --build-arg TORCH_INDEX --build-arg TRAIN_TORCH_INDEX="$TORCH_INDEX" \
            --build-arg COMMIT - > /dev/null
    label=$("$docker" image inspect --format \
        '{{.Config.User}} {{index .Config.Labels "org.opencontainers.image.revision"}} {{.Size}}' "$image:$target")
    echo "$image:$target: user, commit, bytes: $label"
    [ "${label% *}" = "10001:10001 $COMMIT" ] || fail "the labels or the user of $target are wrong"
done

say "copy up to twenty clips of $clips, make sixty synthetic ones"
number=0
while IFS= read -r file; do
    number=$((number + 1))
    cp -- "$file" "$work/data/folder/videos/real-$(printf %02d $number).${file##*.}"
done < <(find "$clips" -type f -regex '.*\.\(mp4\|avi\|mpg\|flv\|webm\|mkv\)' | LC_ALL=C sort | head -20)
[ $number -gt 0 ] || fail "there are no video files in $clips"
chmod -R a+rX "$work"
[ "$user" = "$(id -u)" ] || chown -R "$user:$group" "$work"
plain pipeline python - << 'EOF'
import csv
from pathlib import Path

from bmlpipe.pipeline.demo.synthetic_clips import write_clips

videos = Path("/work/data/folder/videos")
real = [path.name for path in sorted(videos.iterdir())]
with write_clips(videos, {"train": 44, "val": 8, "test": 8}, lambda: None).open() as file:
    rows = [(row["path"], int(row["label"]) % 2, row["split"]) for row in csv.DictReader(file)]
rows += [(name, number % 2, ("train", "val", "train", "test")[number % 4]) for number, name in enumerate(real)]
with Path("/work/data/folder/annotations/clips.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerows([("path", "label", "split"), *rows])
print(f"{len(real)} of your clips, {len(rows)} clips in all")
EOF
total=$(($(wc -l < "$work/data/folder/annotations/clips.csv") - 1))

# ----- with compose and with failures -----

# Print the id of a service's container, or of the first of several.
container() { compose ps --all --quiet "$1" 2> /dev/null | head -1; }
# Wait until a command succeeds: await WHAT TRIES COMMAND …, five tries per second.
await() {
    local what=$1 tries=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ $((tries -= 1)) -gt 0 ] || fail "no sign of $what in time"
        sleep 0.2
    done
}
# Kill the program of a container as a crash or the kernel would. After `docker kill`, nothing would be restarted.
crash() {
    local id=$1
    # shellcheck disable=SC2016  # expanded in the container
    "$docker" exec "$id" sh -c 'kill -9 $(cat /proc/1/task/1/children)'
    await "a restart of $2" 300 sh -c "[ \$('$docker' inspect --format '{{.RestartCount}}' $id) -ge 1 ]"
    say "killed $2; it was restarted"
}
features() { [ "$(find "$work/features" -name '*.h5' | wc -l)" -ge "$1" ]; }
steps() { [ "$(wc -l < "$work/runs/folder/smoke/steps.jsonl")" -ge "$1" ]; }
exited() {
    [ "$("$docker" inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$(container "$1")")" = "exited 0" ]
}

say "docker compose up --scale worker=2"
compose up --detach --no-build --scale worker=2 > "$work/up.log" 2>&1 &
await "the first features" 1500 features 5
crash "$(container worker)" "a worker ($(find "$work/features" -name '*.h5' | wc -l) of $total clips done)"
await "more features" 600 features 20
crash "$(container extract)" "the extraction ($(find "$work/features" -name '*.h5' | wc -l) of $total clips done)"
await "the first training steps" 3000 steps 5
crash "$(container train)" "the training ($(wc -l < "$work/runs/folder/smoke/steps.jsonl") steps done)"
wait $! || { cat "$work/up.log" >&2; fail "docker compose up"; }
await "the report" 3000 exited report
say "all steps are done: $(wc -l < "$work/runs/folder/smoke/steps.jsonl") steps"

# The results of all services, with their SHA-256 sums.
results() {
    (cd "$work" && find features shards runs/folder \( -name '*.h5' -o -name ledger.csv -o -name '*.tar' -o \
        -name index.json -o -name '*.pt' -o -name steps.jsonl -o -name metrics.jsonl \) -type f -print0 |
        LC_ALL=C sort --zero-terminated | xargs --null sha256sum)
}
started() { "$docker" inspect --format '{{.State.StartedAt}}' "$(container "$1")"; }
restarted() { [ "$(started report)" != "$first_report" ] && exited report; }

say "docker compose up again, with nothing left to do"
results > "$work/first.txt"
first_report=$(started report)
compose up --detach --no-build --scale worker=2 >> "$work/up.log" 2>&1 ||
    { cat "$work/up.log" >&2; fail "docker compose up"; }
await "the second report" 3000 restarted
results > "$work/second.txt"
diff "$work/first.txt" "$work/second.txt" || fail "the second docker compose up changed results"
say "$(wc -l < "$work/first.txt") files are unchanged"

# ----- undisturbed, without compose -----

say "run the same commands undisturbed"
plain pipeline bmlpipe extract --dataset folder --seconds 3 --short-side 64 --max-failed 1 --workers 2 \
    --out plain/features
plain pipeline bmlpipe shard --features plain/features --out plain/shards --samples-per-shard 20
plain train-cpu torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 -m bmlpipe.train \
    --shards plain/shards --out plain/run --modulation opm --encoder cnn4 --image-size 64 --epochs 2 \
    --batch-size 2 --workers 1 2> "$work/plain/train.log" || { cat "$work/plain/train.log" >&2; fail "the training"; }
say "compare"
plain pipeline python - "$total" << 'EOF'
import csv, hashlib, json, sys
from collections import Counter
from pathlib import Path

work, plain = Path("/work"), Path("/work/plain")


def ledger(folder):
    with (folder / "ledger.csv").open(newline="") as file:
        return sorted((row["id"], row["status"], row["reason"]) for row in csv.DictReader(file))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def numbers(folder):
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [(row["step"], row["epoch"], row["loss"]) for row in rows]


rows, shards = ledger(work / "features" / "folder"), digests(work / "shards" / "folder")
steps = numbers(work / "runs" / "folder" / "smoke")
print(f"ledger: {len(rows)} rows for {sys.argv[1]} clips, {dict(Counter(row[1:] for row in rows))}")
assert len(rows) == int(sys.argv[1]) and rows == ledger(plain / "features")
print(f"shards: {len(shards)}, SHA-256 equal: {shards == digests(plain / 'shards')}")
assert shards and shards == digests(plain / "shards")
epochs = 1 + steps[-1][1]
print(f"training: {len(steps)} steps of {epochs} epochs, losses equal to the bit: {steps == numbers(plain / 'run')}")
assert [step for step, *_ in steps] == list(range(len(steps))) and steps == numbers(plain / "run")
EOF

say "docker compose run extract, with options"
compose run --rm --no-deps -T extract --dataset folder --seconds 3 --short-side 64 --kinds frames --max-failed 1 \
    --workers 1 --out features/by-hand

say "pages"
compose up --detach --no-build tensorboard reports > /dev/null 2>&1
for page in 16006/ 18000/; do
    await "http://127.0.0.1:$page" 300 python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$page')"
    echo "http://127.0.0.1:$page answers"
done
[ -s "$work/runs/report/index.html" ] || fail "there is no report"
! "$docker" exec "$(container reports)" touch /work/runs/here 2> /dev/null || fail "the page server can write to runs/"
! "$docker" exec "$(container worker)" touch /work/data/here 2> /dev/null || fail "a worker can write to data/"

foreign=$(find "$work"/{features,shards,runs,cache} -mindepth 1 ! -uid "$user" -o -mindepth 1 ! -gid "$group")
[ -z "$foreign" ] || fail "these files do not belong to $user:$group: $foreign"
echo "all $(find "$work"/{features,shards,runs} -type f | wc -l) files belong to $user:$group"
say "passed"
