#!/bin/bash
# Builds the Debian package for this host's Python and architecture: build/ebpf-fw_VERSION_ARCHITECTURE.deb.
#
# The package holds what `make install` installs, below /usr/lib/ebpf-fw: the code and a private virtual environment
# with the packages from PyPI, which Debian has not or has in other versions (docs/adr/0010). bcc stays Debian's.
# DEB_VERSION=VERSION overrides the package's version, DEB_DIRECTORY=DIR where it is put.
set -euo pipefail
cd "$(dirname "$0")/.."

home=/usr/lib/ebpf-fw
python=/usr/bin/python3
output=${DEB_DIRECTORY:-build}
build=

fail() {
    printf 'ebpf-fw: %s\n' "$@" >&2
    exit 1
}

project_version() { sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml; }

# What apt must know of the wheels' machine code: the Python that it was built for, and the newest glibc symbol.
python_minor() { "$python" -c "import sys; print(sys.version_info.minor + ${1:-0})"; }

newest_glibc_symbol() {
    find "$root$home" -name '*.so*' -type f -exec grep -aohE 'GLIBC_2\.[0-9]+' {} + |
        sed 's/GLIBC_//' | sort -uV | tail -n 1
}

install_files() {
    install -d "$root"
    DESTDIR=$root EBPF_FW_HOME=$home scripts/install.sh
    rmdir "$root/var/lib/ebpf-fw" "$root/var/lib" "$root/var" # the unit's StateDirectory makes it
    install -D -m 0644 scripts/remove_filters.py "$root$home/scripts/remove_filters.py"
}

# Nothing in the package installs Python packages or runs their tests.
leave_out_what_never_runs() {
    local packages
    packages=$(echo "$root$home"/.venv/lib/python3.*/site-packages)
    rm -rf "$packages"/{pip,pip-*,setuptools,setuptools-*,pkg_resources,_distutils_hack,distutils-precedence.pth}
    find "$packages/numpy" -name tests -type d -prune -exec rm -rf {} +
    find "$root$home/.venv/bin" -mindepth 1 ! -name 'python*' ! -name ebpf-fw -delete
    rm -rf "$root$home/.venv/include"
}

install_documentation() {
    local documents=$root/usr/share/doc/ebpf-fw manual=$root/usr/share/man/man8
    install -d "$documents" "$manual"
    cp scripts/deb/copyright "$documents/copyright"
    gzip -9n <CHANGELOG.md >"$documents/changelog.gz"
    cp README.md "$documents/"
    cp -R docs "$documents/"
    gzip -9n <scripts/deb/ebpf-fw.8 >"$manual/ebpf-fw.8.gz"
}

write_control() {
    local control=$root/DEBIAN size
    install -d "$control"
    size=$(du -sk --exclude=DEBIAN "$root" | cut -f 1)
    sed -e "s|@VERSION@|$version|" -e "s|@ARCHITECTURE@|$architecture|" -e "s|@SIZE@|$size|" \
        -e "s|@PYTHON@|3.$(python_minor)|" -e "s|@NEXT_PYTHON@|3.$(python_minor 1)|" \
        -e "s|@GLIBC@|$(newest_glibc_symbol)|" scripts/deb/control.in >"$control/control"
    install -m 0755 scripts/deb/{preinst,postinst,prerm,postrm} "$control/"
    printf '%s\n' /etc/ebpf-fw/config.toml /etc/fail2ban/action.d/ebpf-fw.conf >"$control/conffiles"
    (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$control/md5sums"
}

main() {
    command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: packages are built on Debian or Ubuntu"
    [[ -x $python ]] || fail "$python is missing; install python3"
    version=${DEB_VERSION:-$(project_version)-1}
    architecture=$(dpkg --print-architecture)
    umask 022
    install -d "$output"
    build=$(mktemp -d "$output/.deb-XXXXXX")
    trap 'rm -rf "$build"' EXIT
    root=$(realpath "$build")/root
    install_files
    leave_out_what_never_runs
    install_documentation
    write_control
    chmod -R go-w,a+rX "$root"
    local package=$output/ebpf-fw_${version}_$architecture.deb
    dpkg-deb --root-owner-group -Zxz "-z${DEB_COMPRESSION:-4}" --build "$root" "$package" >/dev/null
    echo "ebpf-fw: built $package; install it with: sudo apt install $(realpath "$package")"
}

main "$@"
