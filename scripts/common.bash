# What the scripts here share; sourced, not run. Goes to the repository's root and names the places:
#   $target  cargo's target directory, absolute
#   $tools   what get-tools and get-mongod keep: below the target directory, so never in git
# Settings of whoever runs a script (CHAT__*) are not the script's: they are unset, so that a test never runs, and nothing is
# ever measured, on what an operator's shell happens to hold. Nor is CDPATH, by which `cd` goes elsewhere and says where.
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for name in "${!CHAT__@}"; do unset "$name"; done

target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target=$PWD/$target
tools=$target/tools
mkdir -p "$tools"

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# as_root COMMAND…: runs it as root, or fails saying what to run.
as_root() {
  may_be_root || die "needs root for this; run it yourself: $*"
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@"; fi
}

may_be_root() { [[ $(id -u) == 0 ]] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

# apt_install PACKAGE…: Debian's packages, without questions.
apt_install() {
  command -v apt-get >/dev/null || die "missing here: $* (no apt-get to install it with)"
  may_be_root || die "needs root for this; run it yourself: apt-get update && apt-get install --no-install-recommends $*"
  say "installing $* with apt-get"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 </dev/null \
    || say "apt-get update failed; trying with the lists that are here"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >&2 </dev/null
}

# need_pip: python3 with pip, installed when missing.
need_pip() {
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3 python3-pip
}

# once NAME: the rest of this script runs in one process at a time. The lock goes with the process.
once() {
  exec {lock}>"$tools/.$1.lock"
  flock -n "$lock" || { say "waiting for another $1 to finish"; flock "$lock"; }
}

# unpack_debian PACKAGE FILE: Debian's package below $tools/debian, unpacked and not installed, so that no service of
# it starts. FILE is its path in the package; nothing is done where that is there already. The libraries that it lacks are
# installed.
unpack_debian() {
  local package=$1 dir=$tools/debian/$1 parcel
  [[ -e $dir/$2 ]] && return
  command -v apt-get >/dev/null || die "missing here: $package (no apt-get to fetch it with)"
  say "fetching Debian's $package"
  parcel=$(mktemp -d "$tools/debian.XXXXXX")
  fetch_debian "$parcel" "$package" || {
    as_root apt-get -qq update >&2 </dev/null || true
    fetch_debian "$parcel" "$package" || { rm -rf "$parcel"; die "could not fetch Debian's $package"; }
  }
  mkdir -p "$parcel/$package" "$tools/debian"
  dpkg-deb --extract "$parcel"/*.deb "$parcel/$package"
  [[ -e $parcel/$package/$2 ]] || die "Debian's $package does not hold $2"
  rm -rf "$dir"
  mv "$parcel/$package" "$dir" # whole or not at all: the directory is the same file system
  rm -rf "$parcel"
}

fetch_debian() { (cd "$1" && apt-get -qq download "$2" >/dev/null 2>&1 </dev/null); }
