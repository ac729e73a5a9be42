#!/usr/bin/env bash
# Run the v4 level on a machine without AVX-512, and compare the bits of its results with bits.json: in
# Bochs, which emulates a Skylake-X. (QEMU emulates no AVX-512.) A quarter of an hour.
#
#   apt-get install xorriso cpio mmdebstrap
#   tests/v4.sh [SUITE] [MIRROR]
#
# `python3` has the package's build requirements (`pip install "setuptools>=77" "Cython>=3.1"
# "numpy>=2.0"`) and the minor version of SUITE's python3: 3.11 for bookworm, the default, 3.13 for
# trixie. The guest is SUITE's kernel with a RAM disk of busybox, Python and numpy, Debian's packages.
# Bochs is trixie's 3.0, whatever the machine has: 2.7 loses an fma's result of less than 2**-62 of its
# product, and is half as fast.
set -euo pipefail
suite=${1:-bookworm}
tests=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
emulator=$work/emulator

mmdebstrap --quiet --variant=extract --architectures=amd64 --include=bochs,bochs-term trixie "$emulator" ${2:+"$2"}
mmdebstrap --quiet --variant=extract --architectures=amd64 \
    --include=python3-numpy,busybox-static,linux-image-cloud-amd64,isolinux,syslinux-common "$suite" "$root" ${2:+"$2"}
mkdir -p "$work/source" "$work/disc/isolinux" "$root"/{check,dev,proc}
cp "$root"/boot/vmlinuz-* "$work/disc/vmlinuz"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$work/disc/isolinux"
rm -rf "$root"/boot "$root"/usr/share/{doc,man,locale,perl} "$root"/usr/lib/{modules,syslinux,ISOLINUX} "$root/lib/modules"

cp -r "$tests/../"{setup.py,pyproject.toml,README.md,LICENSE,stableloss} "$work/source"
(
    cd "$work/source"
    # Bochs takes gathers and scatters for illegal whose index is one of zmm16 to zmm31
    export CFLAGS="-w $(printf -- '-ffixed-xmm%d ' {16..31})"
    python3 setup.py --quiet build --build-lib "$root/check"
)
cp "$tests"/bits.{py,json} "$root/check"

cat > "$root/init" << 'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
export PYTHONPATH=/check STABLELOSS_CPU=v4
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/blas:/usr/lib/x86_64-linux-gnu/lapack
# through the kernel's log, which waits for the serial port: a terminal's buffer is lost at the end
{
    python3 -m stableloss
    python3 /check/bits.py
} 2>&1 | while read -r line; do
    echo "$line" > /dev/kmsg
done
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
 APPEND console=ttyS0 printk.time=0 printk.devkmsg=on tsc=reliable mitigations=off clearcpuid=321,323
END
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$work/disc"

cat > "$work/bochsrc" << END
config_interface: textconfig
display_library: rfb, options="timeout=0"
speaker: enabled=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
romimage: file=$emulator/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$emulator/usr/share/bochs/VGABIOS-lgpl-latest
megs: 1024
cpu: model=corei7_skylake_x, ips=50000000
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
log: $work/log
panic: action=fatal
END
echo c > "$work/commands"    # Debian's Bochs starts in its debugger
export LTDL_LIBRARY_PATH=$emulator/usr/lib/x86_64-linux-gnu/bochs/plugins
"$emulator/lib64/ld-linux-x86-64.so.2" --library-path "$emulator/usr/lib/x86_64-linux-gnu" \
    "$emulator/usr/bin/bochs-bin" -q -f "$work/bochsrc" -rc "$work/commands" < /dev/null > "$work/screen" 2>&1 || true
if ! grep -aq '^level v4: \([0-9]*\) of \1 results' "$work/serial"; then
    echo "no agreement; the end of what the guest printed:"
    tail -n 30 "$work/serial"
    exit 1
fi
grep -aE '^(stableloss|CPU|level)' "$work/serial"
