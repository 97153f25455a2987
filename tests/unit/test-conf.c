/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/stat.h>
#include <syslog.h>

#include "basic/conf.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "tap.h"

static char root[] = "/tmp/test-conf-XXXXXX";

static void put(const char *path, const char *text) {
        _cleanup_free_ char *full = strjoinf("%s%s", root, path);
        _cleanup_close_ int fd = -EBADF;

        for (char *p = strchr(full + strlen(root) + 1, '/'); p; p = strchr(p + 1, '/')) {
                *p = 0;
                mkdir_ok(full, 0755);
                *p = '/';
        }
        fd = open(full, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0 || loop_write(fd, text, strlen(text)) < 0)
                ok(false, "writing %s", full);
}

static void clear(void) {
        rm_rf(root);
        mkdir_ok(root, 0755);
}

/* Loads, and gives what was logged, without the root's path. */
static Config *load(char **ret_log) {
        int saved = dup(STDERR_FILENO), r;
        char *log_path = strjoinf("%s.log", root), *text = NULL, *q;
        int fd = open(log_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        Config *c = NULL;
        size_t n;

        dup2(fd, STDERR_FILENO);
        r = config_load(root, &c);
        dup2(saved, STDERR_FILENO);
        close(saved);
        close(fd);
        is_int(r, 0, "config_load()");
        read_file_all(log_path, 1 << 20, &text, &n);
        unlink(log_path);
        free(log_path);
        for (q = strempty(text) == text ? strstr(text, root) : NULL; q; q = strstr(q, root))
                memmove(q, q + strlen(root), strlen(q + strlen(root)) + 1);
        *ret_log = text;
        return c;
}

static void check_defaults(const Config *c) {
        _cleanup_free_ char *backends = strv_join(c->backends, " ");

        for (Program p = 0; p < _PROGRAM_MAX; p++)
                is_str(c->program[p], NULL, "no %s is named", program_to_string(p));
        is_str(backends, "cloud-hypervisor qemu firecracker", "default order of back ends");
        is_int(c->start_timeout_usec, 30 * USEC_PER_SEC, "default StartTimeoutSec=");
        is_int(c->console_log_max, 1 << 20, "default ConsoleLogMaxBytes=");
        is_int(c->events_max, 10000, "default EventsMax=");
        is_int(c->events_max_age_usec / USEC_PER_SEC, 90 * 86400, "default EventsMaxAgeSec=");
        is_int(c->vms_max, 4096, "default VMsMax=");
        is_int(c->user_limit[USER_LIMIT_VMS], 32, "default UserVMsMax=");
        is_int(c->user_limit[USER_LIMIT_CPUS], 64, "default UserCPUsMax=");
        ok(c->user_limit[USER_LIMIT_MEMORY] > UINT64_C(32) << 20 && c->user_limit[USER_LIMIT_MEMORY] < UINT64_C(1) << 60,
           "default UserMemoryMax=");
        is_int(c->user_limit[USER_LIMIT_DISKS], 128, "default UserDisksMax=");
        is_int(c->log_level, LOG_INFO, "default LogLevel=");
}

static void test_none(void) {
        _cleanup_free_ char *log = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        c = load(&log);
        check_defaults(c);
        is_str(log, "", "nothing is logged");
}

static void test_all(void) {
        _cleanup_free_ char *log = NULL, *backends = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf",
            "# comment\n; another\n\n  [VMUnit]  \r\n"
            "QEMU=/opt/qemu\nCloudHypervisor = /opt/chv with space \nFirecracker=/opt/fc\nVirtioFSD=/opt/fsd\nPasst=/opt/passt\n"
            "Backends=qemu \\\n# in between\n   firecracker\n"
            "StartTimeoutSec=1min 30s\nConsoleLogMaxBytes=64K\nEventsMax=5\nEventsMaxAgeSec=2w\nLogLevel=debug");
        c = load(&log);
        backends = strv_join(c->backends, " ");
        is_str(log, "", "nothing is logged");
        is_str(c->program[PROGRAM_QEMU], "/opt/qemu", "QEMU=");
        is_str(c->program[PROGRAM_CLOUD_HYPERVISOR], "/opt/chv with space", "CloudHypervisor=, spaces stripped");
        is_str(c->program[PROGRAM_FIRECRACKER], "/opt/fc", "Firecracker=");
        is_str(c->program[PROGRAM_VIRTIOFSD], "/opt/fsd", "VirtioFSD=");
        is_str(c->program[PROGRAM_PASST], "/opt/passt", "Passt=");
        is_str(backends, "qemu firecracker", "Backends=, continued");
        is_int(c->start_timeout_usec, 90 * USEC_PER_SEC, "StartTimeoutSec=");
        is_int(c->console_log_max, 65536, "ConsoleLogMaxBytes=");
        is_int(c->events_max, 5, "EventsMax=");
        is_int(c->events_max_age_usec / USEC_PER_SEC, 14 * 86400, "EventsMaxAgeSec=");
        is_int(c->log_level, LOG_DEBUG, "LogLevel=");
}

static void test_later_wins(void) {
        _cleanup_free_ char *log = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf",
            "[VMUnit]\nQEMU=/a\nQEMU=/b\nFirecracker=/c\nFirecracker=\nEventsMax=1\nEventsMax=\nBackends=qemu\nBackends=\n"
            "[VMUnit]\nLogLevel=err\nLogLevel=0\n");
        c = load(&log);
        is_str(c->program[PROGRAM_QEMU], "/b", "the later assignment wins");
        is_int(c->log_level, LOG_EMERG, "in a section opened again too");
        free(c->program[PROGRAM_QEMU]);
        c->program[PROGRAM_QEMU] = NULL;
        c->log_level = LOG_INFO;
        check_defaults(c);
        is_str(log, "", "nothing is logged");
}

static void test_warnings(void) {
        _cleanup_free_ char *log = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf",
            "EventsMax=1\n"             /* 1 */
            "[VMUnit]\n"
            "Qemu=/x\n"                 /* 3 */
            "QEMU=relative\n"
            "Backends=qemu xen\n"       /* 5 */
            "Backends=qemu qemu\n"
            "StartTimeoutSec=soon\n"    /* 7 */
            "StartTimeoutSec=0\n"
            "StartTimeoutSec=infinity\n" /* 9 */
            "ConsoleLogMaxBytes=1\n"
            "EventsMax=-1\n"            /* 11 */
            "LogLevel=loud\n"
            "nonsense\n"                /* 13 */
            "EventsMax=1\x1b[2J\n"
            "[Other]\n"                 /* 15 */
            "EventsMax=7\n"
            "[VMUnit]\n"                /* 17 */
            "LogLevel=\\\n"
            "9\n"                       /* 19 */
            "=x\n"
            "Backends=virtiofsd\n"      /* 21 */
            "EventsMax=\\\n");
        c = load(&log);
        check_defaults(c);
#define AT(n) "/etc/vmunit/vmunit.conf:" #n ": "
        is_str(log,
               AT(1) "Assignment outside of a section, ignored\n"
               AT(3) "Unknown key \"Qemu\", ignored\n"
               AT(4) "QEMU=relative is not valid, expected an absolute path; ignored\n"
               AT(5) "Backends=qemu xen is not valid, expected names out of \"qemu cloud-hypervisor firecracker\", each once; ignored\n"
               AT(6) "Backends=qemu qemu is not valid, expected names out of \"qemu cloud-hypervisor firecracker\", each once; ignored\n"
               AT(7) "StartTimeoutSec=soon is not valid, expected a time from 1ms to 1d; ignored\n"
               AT(8) "StartTimeoutSec=0 is not valid, expected a time from 1ms to 1d; ignored\n"
               AT(9) "StartTimeoutSec=infinity is not valid, expected a time from 1ms to 1d; ignored\n"
               AT(10) "ConsoleLogMaxBytes=1 is not valid, expected a size from 4K to 1G; ignored\n"
               AT(11) "EventsMax=-1 is not valid, expected a number up to 1000000000, 0 for no limit; ignored\n"
               AT(12) "LogLevel=loud is not valid, expected emerg, alert, crit, err, warning, notice, info, debug or 0 to 7; ignored\n"
               AT(13) "Neither a section nor an assignment, ignored\n"
               AT(14) "EventsMax=1\\x1b[2J is not valid, expected a number up to 1000000000, 0 for no limit; ignored\n"
               AT(15) "Unknown section \"[Other]\", ignored\n"
               AT(18) "LogLevel=9 is not valid, expected emerg, alert, crit, err, warning, notice, info, debug or 0 to 7; ignored\n"
               AT(20) "Unknown key \"\", ignored\n"
               AT(21) "Backends=virtiofsd is not valid, expected names out of \"qemu cloud-hypervisor firecracker\", each once; ignored\n",
               "each with file and line");
}

/* Elsewhere a pause of zero made a loop of restarts that let nothing else run. */
static void test_no_pause(void) {
        _cleanup_free_ char *log = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf", "[VMUnit]\nRestartSec=0\nRestartMaxDelaySec=0\nRestartResetSec=0\n");
        c = load(&log);
        check_defaults(c);
        is_str(log,
               AT(2) "RestartSec=0 is not valid, expected a time from 1ms to 1d; ignored\n"
               AT(3) "RestartMaxDelaySec=0 is not valid, expected a time from 1ms to 1d; ignored\n"
               AT(4) "RestartResetSec=0 is not valid, expected a time from 1ms to 1d; ignored\n",
               "a restart without a pause is refused");
}

static void test_user_limits(void) {
        _cleanup_free_ char *log = NULL, *log2 = NULL;
        _cleanup_(config_freep) Config *c = NULL, *d = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf", "[VMUnit]\nVMsMax=5\nUserVMsMax=3\nUserCPUsMax=infinity\nUserMemoryMax=1.5G\nUserDisksMax=0\n");
        put("/etc/vmunit/vmunit.conf.d/10-a.conf", "[VMUnit]\nUserVMsMax=many\nUserCPUsMax=-1\nUserMemoryMax=half\nUserDisksMax=1K\nVMsMax=-1\n");
        c = load(&log);
        is_int(c->vms_max, 5, "VMsMax=");
        is_int(c->user_limit[USER_LIMIT_VMS], 3, "UserVMsMax=");
        ok(c->user_limit[USER_LIMIT_CPUS] == UINT64_MAX, "UserCPUsMax=infinity");
        is_int(c->user_limit[USER_LIMIT_MEMORY], UINT64_C(1536) << 20, "UserMemoryMax=");
        is_int(c->user_limit[USER_LIMIT_DISKS], 0, "UserDisksMax=0: none");
#define DROPIN(n) "/etc/vmunit/vmunit.conf.d/10-a.conf:" #n ": "
        is_str(log,
               DROPIN(2) "UserVMsMax=many is not valid, expected a number up to 1000000000, or infinity; ignored\n"
               DROPIN(3) "UserCPUsMax=-1 is not valid, expected a number up to 1000000000, or infinity; ignored\n"
               DROPIN(4) "UserMemoryMax=half is not valid, expected a size, a percentage of the host's memory, or infinity; ignored\n"
               DROPIN(5) "UserDisksMax=1K is not valid, expected a number up to 1000000000, or infinity; ignored\n"
               DROPIN(6) "VMsMax=-1 is not valid, expected a number up to 1000000000, or infinity; ignored\n",
               "what is wrong changes nothing");

        clear();
        put("/etc/vmunit/vmunit.conf", "[VMUnit]\nUserMemoryMax=25%\n");
        d = load(&log2);
        clear();
        config_free(c);
        free(log);
        c = load(&log);
        ok(d->user_limit[USER_LIMIT_MEMORY] * 2 == c->user_limit[USER_LIMIT_MEMORY], "a quarter is half of the default");
}

static void test_dropins(void) {
        _cleanup_free_ char *log = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf", "[VMUnit]\nEventsMax=1\nQEMU=/main\n");
        put("/usr/lib/vmunit/vmunit.conf.d/10-a.conf", "[VMUnit]\nEventsMax=2\nFirecracker=/usr\n");
        put("/run/vmunit.conf.d/20-b.conf", "[VMUnit]\nEventsMax=3\n");
        put("/etc/vmunit/vmunit.conf.d/10-a.conf", "[VMUnit]\nEventsMax=4\n");
        put("/etc/vmunit/vmunit.conf.d/30-c.conf.bak", "[VMUnit]\nEventsMax=5\n");
        put("/etc/vmunit/vmunit.conf.d/.40-d.conf", "[VMUnit]\nEventsMax=6\n");
        put("/run/vmunit.conf.d/05-e.conf", "[VMUnit]\nConsoleLogMaxBytes=x\n");
        put("/run/vmunit/vmunit.conf.d/50-f.conf", "[VMUnit]\nEventsMax=7\nQEMU=/daemons\n"); /* which the daemon may write, and the launcher would read */
        c = load(&log);
        is_int(c->events_max, 3, "the last by name wins, wherever it is");
        is_str(c->program[PROGRAM_FIRECRACKER], NULL, "one in /etc replaces that of /usr whole");
        is_str(c->program[PROGRAM_QEMU], "/main", "what drop-ins do not name stays");
        is_str(log, "/run/vmunit.conf.d/05-e.conf:2: ConsoleLogMaxBytes=x is not valid, expected a size from 4K to 1G; ignored\n",
               "warnings name the drop-in");
}

static void test_unreadable(void) {
        _cleanup_free_ char *log = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/etc/vmunit/vmunit.conf/x", "");
        put("/etc/vmunit/vmunit.conf.d", "a file\n");
        c = load(&log);
        check_defaults(c);
        is_str(log, "Cannot read /etc/vmunit/vmunit.conf, ignored: Is a directory\n"
                    "Cannot read /etc/vmunit/vmunit.conf.d, ignored: Not a directory\n", "what can't be read is a warning");
}

static void test_masked(void) {
        _cleanup_free_ char *log = NULL, *path = NULL;
        _cleanup_(config_freep) Config *c = NULL;

        clear();
        put("/usr/lib/vmunit/vmunit.conf.d/a.conf", "[VMUnit]\nEventsMax=2\n");
        put("/etc/vmunit/vmunit.conf.d/b.conf", "");
        path = strjoinf("%s/etc/vmunit/vmunit.conf.d/a.conf", root);
        check(symlink("/dev/null", path) == 0);
        c = load(&log);
        check_defaults(c);
        is_str(log, "", "a link to /dev/null masks a drop-in");
}

int main(void) {
        if (!mkdtemp(root))
                return 1;
        log_init(NULL);
        test_none();
        test_all();
        test_later_wins();
        test_warnings();
        test_no_pause();
        test_user_limits();
        test_dropins();
        test_unreadable();
        test_masked();
        rm_rf(root);
        return done_testing();
}
