#!/usr/bin/env bash
# A Python of another Debian release or architecture, in a folder, where nothing is installed for it: its packages are
# fetched and unpacked, and a program `python` starts it with its own C library, by qemu-user where the processor is
# another one. As root or not.
#
#   tools/debian_python.sh forky amd64 3.14 build/python3.14    ->  build/python3.14/usr/bin/python
#   tools/debian_python.sh bookworm arm64 3.11 build/aarch64
#
# Needs apt and Debian's keys; for another architecture qemu-user-static. To compile for it: CXXFLAGS="-idirafter
# FOLDER/usr/include", where its pyconfig.h is.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,11s/^# \?//p' "$0"; exit 2; }
suite=$1 architecture=$2 python=python$3
mkdir -p "$4"
place=$(cd "$4" && pwd)
start=$place/usr/bin/python
[ -e "$start" ] && exit # it is there already

apt=$place/apt
mkdir -p "$apt"/{lists,archives}/partial
: > "$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" > "$apt/sources"
cat > "$apt/conf" << EOF
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::sourcelist "$apt/sources";
Dir::Etc::sourceparts "-";
EOF
export APT_CONFIG=$apt/conf
apt-get update -qq
apt-get install -y -qq --download-only "$python" "$python-venv" "lib$python-dev" libstdc++6 > /dev/null
for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$place"; done
rm -r "$apt"
# Where `python -m venv` takes pip from.
sed -i "s#'/usr/share/python-wheels/'#'$place/usr/share/python-wheels/'#" "$place/usr/lib/$python"/_sysconfigdata_*.py
[ -e "$place/lib" ] || ln -s usr/lib "$place/lib" # since 2023 Debian has libraries there, and programs look here

if [ "$architecture" = "$(dpkg --print-architecture)" ]; then
    loader=$(find "$place/lib/" -name 'ld-linux-*.so.*' | head -1)
    libraries=$(find "$place"/{usr/,}lib/ -mindepth 1 -maxdepth 1 -name '*-linux-gnu' | paste -sd :)
    run="$loader --library-path $libraries --argv0"
else
    case $architecture in arm64) processor=aarch64 ;; *) processor=$architecture ;; esac
    run="qemu-$processor-static -L $place -0"
fi
# By this name Python finds what is its own, and what it starts as itself again.
printf '#!/bin/sh\nexec %s "$0" %s "$@"\n' "$run" "$place/usr/bin/$python" > "$start"
chmod +x "$start"
"$start" -c 'import platform, sys; print(platform.python_version(), platform.machine(), sys.executable)'
