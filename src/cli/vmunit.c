/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <locale.h>
#include <stdio.h>

#include "cli/cli-agent.h"
#include "cli/cli-args.h"
#include "cli/cli-blame.h"
#include "cli/cli-console.h"
#include "cli/cli-error.h"
#include "cli/cli-format.h"
#include "cli/cli-operate.h"
#include "cli/cli-show.h"
#include "cli/cli-stop-all.h"

#define EXIT_USAGE 2

static void help_verbs(void) {
        fputs("\nChange virtual machines (one or more, by name or id):\n"
              "  create NAME [FILE|-]   Make a VM from a definition in JSON, from options, or both\n"
              "  start NAME…            Start; waits until it runs\n"
              "  stop NAME…             Press the power button; after the time-out, force\n"
              "  stop-all               Stop all VMs, the last started first, as a shutdown of the host does\n"
              "  kill NAME…             End at once\n"
              "  reboot NAME…           Press the power button, then start again\n"
              "  reset NAME…            Restart at once, as the reset button does\n"
              "  pause NAME…            Freeze\n"
              "  resume NAME…           Go on after a pause\n"
              "  remove NAME…           Remove a stopped VM; files of its definition stay\n"
              "\nLook at them:\n"
              "  list                   All VMs\n"
              "  show NAME              Properties, or the definition\n"
              "  status NAME            State, use of resources and last events\n"
              "  console NAME           Serial console; Ctrl-] leaves\n"
              "  log NAME               What the console said\n"
              "  vsock NAME PORT        Standard input and output to and from a vsock port in the guest\n"
              "  events [NAME]          What happened\n"
              "  backends               VMMs that are there, their versions, why one can't be used\n"
              "  blame NAME             Where its last start spent the time\n",
              stdout);
}

static void help_options(void) {
        fputs("\nOptions (anywhere on the line):\n"
              "  -h --help              This text\n"
              "     --version           The version\n"
              "     --json              list, show, status, events, backends, blame: print JSON\n"
              "     --no-legend         list, events, backends: no heading\n"
              "  -p --property=NAME     show: only this property (may be repeated)\n"
              "     --value             show: values without names\n"
              "     --definition        show: the definition as JSON\n"
              "  -n --number=N          log: at most the last N bytes (as 4096, 64K); events: the last N\n"
              "  -f --follow            log: go on with what the console says from now on\n"
              "     --vmm               log: what the VMM wrote on its standard error\n"
              "     --raw               log: unfiltered on a terminal, too\n"
              "     --read-only         console: nothing goes to the guest\n"
              "     --timeout=TIME      stop: how long the guest has (as 30, 1min, infinity; 0: force at once)\n"
              "     --force             remove: kill it first if it runs\n"
              "     --no-block          create --start, start, stop, reboot, remove: do not wait for the end\n"
              "     --start             create: start it, too\n"
              "     --no-ask-password   Fail where a password would be asked for\n",
              stdout);
}

static void help_create(void) {
        fputs("\nOptions of create (each changes what FILE says; a relative path counts from here):\n"
              "     --backend=NAME      auto, qemu, cloud-hypervisor or firecracker\n"
              "     --accel=NAME        auto, kvm or tcg\n"
              "     --cpus=N  --memory=SIZE\n"
              "     --kernel=PATH  --initrd=PATH  --cmdline=TEXT\n"
              "     --firmware=NAME     bios, uefi or a path (with a slash)\n"
              "     --disk=PATH[,format=raw|qcow2][,readonly][,name=NAME]\n"
              "                         A disk (may be repeated; a comma in PATH is written twice)\n"
              "     --share=TAG=DIRECTORY[:ro]\n"
              "                         A folder of the host that the guest can mount (may be repeated)\n"
              "     --network=user      A network (may be repeated)\n"
              "     --forward=[ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]\n"
              "                         A port of the host, forwarded to the guest by the last network;\n"
              "                         without any, a user network is made (may be repeated)\n"
              "     --stop-timeout=TIME How long the guest has to shut down\n"
              "     --label=KEY=VALUE   A label (may be repeated)\n"
              "     --vsock             Give it a vsock\n",
              stdout);
}

static void help_notes(void) {
        fputs("\nJSON: numbers are numbers, and times in *USec are microseconds since 1970.\n"
              "  list                   Array of objects: each VM's properties, named as on D-Bus\n"
              "  show                   Object of properties\n"
              "  status                 The same, and Stats (object; null if it does not run), JobProperties (object\n"
              "                         or null), Filesystems (array of its definition, or null) and Events (array as of\n"
              "                         events: the last ones)\n"
              "  events                 Array of objects: Id, TimeUSec, VMId, VMName, Type, Message, Details\n"
              "  backends               Array of objects: Name, Path, Usable, Version, Reason, Features\n"
              "  blame                  Object: Name, Id, Job, StartedUSec, SumUSec, and Stages (array of objects: Stage,\n"
              "                         DurationUSec), the longest first\n"
              "\nExit status: 0 done, 1 failed (of several: any), 2 wrong usage.\n",
              stdout);
}

static int help(const Args *a) {
        if (a->version) {
                puts("vmunit " VMUNIT_VERSION);
                return 0;
        }

        puts("vmunit VERB [NAME…] [OPTIONS]\n\nRun virtual machines as systemd units.");
        help_verbs();
        help_options();
        help_create();
        help_notes();
        return 0;
}

static int run(const Args *a) {
        switch (a->verb) {
        case VERB_HELP:
                return help(a);
        case VERB_LIST:
                return verb_list(a);
        case VERB_SHOW:
                return verb_show(a);
        case VERB_STATUS:
                return verb_status(a);
        case VERB_EVENTS:
                return verb_events(a);
        case VERB_BACKENDS:
                return verb_backends(a);
        case VERB_BLAME:
                return verb_blame(a);
        case VERB_STOP_ALL:
                return verb_stop_all(a);
        case VERB_CONSOLE:
                return verb_console(a);
        case VERB_VSOCK:
                return verb_vsock(a);
        case VERB_LOG:
                return verb_log(a);
        default:
                return operate(a);
        }
}

int main(int argc, char **argv) {
        _cleanup_(args_done) Args a = {};
        int r;

        setlocale(LC_CTYPE, "");

        r = args_parse(argc, argv, &a);
        if (r < 0)
                return r == -EINVAL ? EXIT_USAGE : EXIT_FAILURE;

        r = run(&a);
        agent_close();
        if (fflush(stdout) != 0 || ferror(stdout)) {
                say("vmunit", "cannot write the output");
                return EXIT_FAILURE;
        }
        /* Only the options of a new VM and a port are read later than the others. */
        if (r == -EINVAL && (a.verb == VERB_CREATE || a.verb == VERB_VSOCK))
                return EXIT_USAGE;
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
