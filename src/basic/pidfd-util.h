/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "basic/macro.h"

/* A pidfd (close-on-exec), or -errno: -ESRCH when there is no such process. */
int pidfd_open_pid(pid_t pid);

/* pidfd_send_signal(2); -ESRCH when it is dead already. */
int pidfd_kill(int pidfd, int sig);

/* True when the process has ended (a zombie has). Never waits. */
bool pidfd_dead(int pidfd);

/* The pid that a pidfd stands for, from /proc/self/fdinfo; -ESRCH when it is reaped. */
int pidfd_get_pid(int pidfd, pid_t *ret);

/* The effective uid of the process that it stands for and of no other; -ESRCH when it has ended. */
int pidfd_get_euid(int pidfd, uid_t *ret);

/* The inode that names a process for good where pidfds have one of their own (Linux >= 6.9), else 0. */
uint64_t pidfd_inode(int pidfd);

/* Wait status of a dead and reaped process, by PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux >= 6.15); -EOPNOTSUPP where the
 * kernel can't, -EAGAIN while it is not reaped. */
int pidfd_exit_status(int pidfd, int *ret_status);

/* The second field of "Uid:" in /proc/PID/status, for kernels (< 6.13) that do not tell it by a pidfd */
int pid_euid(pid_t pid, uid_t *ret);

/* Start time in clock ticks since boot: field 22 of /proc/PID/stat, see proc_pid_stat(5). */
int pid_start_time(pid_t pid, uint64_t *ret);

/* SIGKILL has reached it as a whole, so it will be gone in a moment, whatever it does. A signal that an init of a PID namespace has sent to itself
 * does not count: it does nothing. */
bool pid_killed(pid_t pid);

/* Stopped by a signal or a debugger */
bool pid_stopped(pid_t pid);

/* Path of the process in the cgroup2 hierarchy (the line "0::" of /proc/PID/cgroup), e.g. "/machine.slice/a.scope". */
int pid_cgroup(pid_t pid, char **ret);

/* The kernel's boot id, 36 characters; see proc_sys_kernel(5). */
int read_boot_id(char ret[static 37]);
