#!/bin/sh
# Becomes a program of another root file system, with the processes and mounts of the namespaces that it is started in
# and the network of the machine: what it starts ends with it, and no mount is left.
#
#   unshare --mount --pid --fork --kill-child --propagation private in-root.sh ROOT SHARED COMMAND...
#
# The directory SHARED has the same path in there as outside.
set -e
root=$1 shared=$2
shift 2
mount --bind "$root" "$root" # a root has to be a mount
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root$shared"
mount --rbind "$shared" "$root$shared"
cd "$root"
pivot_root . mnt
# shellcheck disable=SC2016 # the shell in there reads it
exec chroot . /bin/sh -ec 'umount -l /mnt; exec "$@"' sh "$@"
