#!/bin/busybox sh
# shellcheck shell=dash
# First program of the virtual machine: reaches the two disks and goes on to the root's systemd.
# kernel.py puts the modules' insmod lines in.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

@LOAD_MODULES@

# The disks appear a moment after their driver.
tries=0
while [ ! -b /dev/vdb ] && [ $tries -lt 200 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
mount -t ext4 -o rw,noatime /dev/vda /root || {
    echo "initrd: cannot mount the root"
    cat /proc/partitions
    poweroff -f
}
mount -t ext4 -o rw,noatime /dev/vdb /root/usr/lib/modules || echo "initrd: cannot mount the modules"
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /lib/systemd/systemd
