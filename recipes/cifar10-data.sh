#!/usr/bin/env bash
# CIFAR-10 as a folder of images: unpack, decode once, and pack what evaluation alone needs.
# ARCHIVE: split/class/*.jpg in a tar file, where DATA is not there yet. PACK: an archive to write,
# of all test images, and of the first ones that training uses and that it holds out.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/cifar10-settings.sh

if [[ ! -d $DATA ]]; then
    mkdir -p "$DATA.part"
    tar xf "${ARCHIVE:?names the archive of split/class/*.jpg, because there is no folder $DATA}" \
        -C "$DATA.part"
    mv "$DATA.part" "$DATA"
fi
"$PYTHON" - "$DATA" "${PACK:-}" <<'END'
import io
import sys
import tarfile
import time
from pathlib import Path

from rdc.data import load
from rdc.data.folder import read_folder
from rdc.runs.fingerprints import data_fingerprint

folder, pack = sys.argv[1:]
splits = ("train", "validation", "test")
for split in splits:
    started = time.perf_counter()
    data = load(folder, split)
    seconds = time.perf_counter() - started
    print(f"{split:<11}{len(data):>6} images {seconds:6.1f} s  {data_fingerprint(data)[:16]}")
if pack:
    with tarfile.open(pack, "w:xz") as archive:
        for split, most in zip(splits, (1000, 1000, None), strict=True):
            batches = read_folder(Path(folder), split).batches()
            files = [file for batch in batches for file in batch()]
            for name, content in files[:most]:
                entry = tarfile.TarInfo(f"{split}/{name.split('/', 1)[1]}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    print(f"{pack}: {Path(pack).stat().st_size / 2**20:.1f} MiB")
END
