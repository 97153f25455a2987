/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sysexits.h>
#include <unistd.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "api/api.h"
#include "basic/conf.h"
#include "basic/fault.h"
#include "basic/log-journal.h"
#include "basic/string-util.h"
#include "core/manager.h"

/* vmunitd: one thread, one loop. SIGTERM ends it and leaves all VMs running. */

#define BUS_NAME "org.vmunit1"

static int on_disconnected(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        log_error("The connection to the bus is lost; the service manager starts this daemon again");
        return sd_event_exit(userdata, 1);
}

typedef struct Context {
        sd_event *event;
        sd_bus *bus;
        Manager *manager;
} Context;

static int on_name_reply(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const sd_bus_error *e = sd_bus_message_get_error(m);
        Context *c = userdata;

        if (e) {
                log_error("Can't own the name " BUS_NAME ": %s", e->message);
                return sd_event_exit(c->event, 1);
        }
        (void) sd_notify(false, "READY=1");
        manager_connect(c->manager);
        manager_on_boot(c->manager);
        return 0;
}

/* Only now, for a client that was waiting for us starts a VM at once. */
static void on_ready(void *userdata) {
        Context *c = userdata;
        int r;

        r = sd_bus_request_name_async(c->bus, NULL, BUS_NAME, 0, on_name_reply, c);
        if (r < 0) {
                log_error_errno(r, "Can't ask for the name " BUS_NAME);
                (void) sd_event_exit(c->event, 1);
        }
}

static int open_bus(sd_event *event, sd_bus **ret) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        int r;

        r = sd_bus_open_system(&bus);
        if (r < 0)
                return log_error_errno(r, "Can't connect to the system bus");
        r = sd_bus_attach_event(bus, event, SD_EVENT_PRIORITY_NORMAL);
        if (r >= 0)
                r = sd_bus_set_close_on_exit(bus, false); /* who waits is answered after the loop's end */
        if (r < 0)
                return log_error_errno(r, "Can't watch the bus");
        r = sd_bus_match_signal(bus, NULL, "org.freedesktop.DBus.Local", "/org/freedesktop/DBus/Local",
                                "org.freedesktop.DBus.Local", "Disconnected", on_disconnected, event);
        if (r < 0)
                return log_error_errno(r, "Can't watch the bus");
        *ret = TAKE_PTR(bus);
        return 0;
}

static int setup_event(sd_event **ret) {
        _cleanup_(sd_event_unrefp) sd_event *event = NULL;
        sigset_t hangup;
        int r;

        sigemptyset(&hangup);
        sigaddset(&hangup, SIGHUP);
        if (sigprocmask(SIG_BLOCK, &hangup, NULL) < 0)
                return log_error_errno(-errno, "Can't handle signals");
        r = sd_event_default(&event);
        if (r < 0)
                return log_error_errno(r, "Can't make an event loop");
        r = sd_event_set_signal_exit(event, true);
        if (r < 0)
                return log_error_errno(r, "Can't handle signals");
        r = sd_event_set_watchdog(event, true);
        if (r < 0)
                return log_error_errno(r, "Can't serve the watchdog");
        (void) signal(SIGPIPE, SIG_IGN);
        *ret = TAKE_PTR(event);
        return 0;
}

static int on_hangup(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        (void) manager_reload(userdata);
        return 0;
}

/* `systemctl reload`. The signal does not end the daemon before either, for it is blocked since setup_event(). */
static int handle_hangup(sd_event *event, Manager *m) {
        int r;

        r = sd_event_add_signal(event, NULL, SIGHUP, on_hangup, m);
        return r < 0 ? log_error_errno(r, "Can't handle SIGHUP") : 0;
}

static void on_all_stopped(void *userdata, bool none_runs) {
        (void) sd_event_exit(userdata, none_runs ? 0 : 1);
}

static int run(bool stop_all) {
        _cleanup_(config_freep) Config *config = NULL;
        _cleanup_(sd_event_unrefp) sd_event *event = NULL;
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_(manager_freep) Manager *manager = NULL;
        _cleanup_(api_freep) Api *api = NULL;
        _cleanup_free_ char *message = NULL;
        Context context;
        int r;

        /* Where no daemon ran since the boot, no VM does. */
        if (stop_all && access("/run/vmunit", F_OK) < 0 && errno == ENOENT)
                return 0;

        r = config_load(NULL, &config);
        if (r < 0)
                return log_error_errno(r, "Can't read the configuration");
        /* People want to read what went wrong alone. */
        log_set_max_level(stop_all && !log_is_to_journal() ? MIN(config->log_level, LOG_NOTICE) : config->log_level);
        r = setup_event(&event);
        if (r < 0)
                return r;
        r = open_bus(event, &bus);
        if (r < 0)
                return r;

        r = manager_new(event, bus, config, &manager, &message);
        if (r < 0) {
                if (!message)
                        return log_error_errno(r, "Can't start");
                if (r == -EWOULDBLOCK && stop_all) /* `vmunit stop-all` tries again, and says so if that takes long */
                        return r;
                log_error("%s", message);
                return r == -EWOULDBLOCK ? r : -EBADMSG;
        }
        context = (Context) { event, bus, manager };
        if (!stop_all) {
                r = api_new(event, bus, manager, &api);
                if (r < 0)
                        return log_error_errno(r, "Can't put the objects on the bus");
                r = handle_hangup(event, manager);
                if (r < 0)
                        return r;
        }
        manager->starts_nothing = stop_all;
        r = manager_start(manager, stop_all ? NULL : on_ready, &context);
        if (r < 0)
                return log_error_errno(r, "Can't take over");
        /* In the place of a daemon that has died: at shutdown the service manager starts none. */
        if (stop_all) {
                manager_connect(manager);
                r = manager_stop_all(manager, on_all_stopped, event);
                if (r < 0)
                        return log_error_errno(r, "Can't stop the virtual machines");
        }

        r = sd_event_loop(event);
        manager_end_stops(manager);
        (void) sd_notify(false, "STOPPING=1\nSTATUS=Ended; virtual machines go on");
        return r;
}

int main(int argc, char *argv[]) {
        static const struct option options[] = {
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, 'V' },
                { "stop-all", no_argument, NULL, 's' },
#ifdef FAULT_INJECTION
                { "fault-points", no_argument, NULL, 'f' },
#endif
                {},
        };
        bool stop_all = false;
        int c, r;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        puts("vmunitd [--stop-all | --help | --version]\n\n"
                             "Runs virtual machines in systemd scopes; started by systemd, see vmunitd(8).\n"
                             "With --stop-all, where no daemon runs: stops all virtual machines in good order and ends.");
                        return 0;
                case 'V':
                        puts("vmunitd " VMUNIT_VERSION);
                        return 0;
                case 's':
                        stop_all = true;
                        break;
#ifdef FAULT_INJECTION
                case 'f':
                        fault_list();
                        return 0;
#endif
                default:
                        return 2;
                }

        log_init(log_send_to_journal);
        /* A large answer goes back to the system when it is sent: without a fixed bound glibc learns to keep it. */
        (void) mallopt(M_MMAP_THRESHOLD, 128 * 1024);
        r = run(stop_all);
        if (r == -EWOULDBLOCK && stop_all)
                return EX_TEMPFAIL;
        return r == -EBADMSG ? EX_CONFIG : r != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
