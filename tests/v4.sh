#!/usr/bin/env bash
# Run the v4 level on a machine without AVX-512, and compare the bits of its results with bits.json: in
# Bochs, which emulates a Skylake-X. (QEMU emulates no AVX-512.) Ten minutes.
#
#   apt-get install bochs xorriso cpio mmdebstrap
#   tests/v4.sh [SUITE] [MIRROR]
#
# `python3` has the package's build requirements (`pip install "setuptools>=77" "Cython>=3.1"
# "numpy>=2.0"`) and the minor version of SUITE's python3: 3.11 for bookworm, the default, 3.13 for
# trixie. The guest is SUITE's kernel with a RAM disk of busybox, Python and numpy, Debian's packages.
set -euo pipefail
suite=${1:-bookworm}
tests=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

mmdebstrap --quiet --variant=extract --architectures=amd64 \
    --include=python3-numpy,busybox-static,linux-image-cloud-amd64,isolinux,syslinux-common "$suite" "$root" ${2:+"$2"}
mkdir -p "$work/source" "$work/disc/isolinux" "$root/check"
cp "$root"/boot/vmlinuz-* "$work/disc/vmlinuz"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$work/disc/isolinux"
rm -rf "$root"/boot "$root"/usr/share/{doc,man,locale,perl} "$root"/usr/lib/{modules,syslinux,ISOLINUX} "$root/lib/modules"

cp -r "$tests/../"{setup.py,pyproject.toml,README.md,LICENSE,stableloss} "$work/source"
(cd "$work/source" && python3 setup.py --quiet build --build-lib "$root/check")
cp "$tests"/bits.{py,json} "$root/check"

cat > "$root/init" << 'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec > /dev/ttyS0 2>&1
export PYTHONPATH=/check STABLELOSS_CPU=v4
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/blas:/usr/lib/x86_64-linux-gnu/lapack
python3 -m stableloss
python3 /check/bits.py
/bin/busybox sleep 1
/bin/busybox poweroff -f
END
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) | gzip -1 > "$work/disc/initrd.gz"
# Bochs reports the size of the compacted XSAVE area wrongly, for which Linux would do without AVX
cat > "$work/disc/isolinux/isolinux.cfg" << 'END'
DEFAULT check
LABEL check
 KERNEL /vmlinuz
 INITRD /initrd.gz
 APPEND console=ttyS0 tsc=reliable mitigations=off clearcpuid=321,323
END
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$work/disc"

cat > "$work/bochsrc" << END
config_interface: textconfig
display_library: rfb, options="timeout=0"
speaker: enabled=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
megs: 1024
cpu: model=corei7_skylake_x, ips=50000000
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
log: $work/log
panic: action=fatal
END
echo c > "$work/commands"    # Debian's Bochs starts in its debugger
bochs -q -f "$work/bochsrc" -rc "$work/commands" < /dev/null > "$work/screen" 2>&1 || true
grep -aE '^(stableloss|CPU|level|differs)' "$work/serial"
grep -aq '^level v4: \([0-9]*\) of \1 results' "$work/serial"
