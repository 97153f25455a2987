/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/api-internal.h"
#include "api/methods.h"
#include "api/wire.h"
#include "basic/string-util.h"

/* The one table of what it takes to call what. A method that is not in it can't be called. */

#define MANAGER(member, verb, right, ...) { API_MANAGER_INTERFACE, member, verb, right, __VA_ARGS__ }
#define VM_(member, verb, right, ...) { API_VM_INTERFACE, member, verb, right, __VA_ARGS__ }
#define JOB(member, verb, right, ...) { API_JOB_INTERFACE, member, verb, right, __VA_ARGS__ }

static const Method methods[] = {
        MANAGER("CreateVM", "create", RIGHT_CREATE, manager_method_create_vm, .examine = manager_examine_create_vm),
        MANAGER("GetVM", "get", RIGHT_NONE, manager_method_get_vm),
        MANAGER("GetVMByPID", "get", RIGHT_NONE, manager_method_get_vm_by_pid),
        MANAGER("ListVMs", "list", RIGHT_NONE, manager_method_list_vms),
        MANAGER("ListEvents", "list-events", RIGHT_INSPECT, manager_method_list_events,
                .otherwise = manager_method_list_own_events, .examine = manager_examine_list_events),
        MANAGER("GetUsage", "get-usage", RIGHT_NONE, manager_method_get_usage),
        MANAGER("Reload", "reload", RIGHT_CONFIGURE, manager_method_reload),

        VM_("Start", "start", RIGHT_MANAGE, vm_method_start),
        VM_("Stop", "stop", RIGHT_MANAGE, vm_method_stop),
        VM_("Kill", "kill", RIGHT_MANAGE, vm_method_kill, .always = true),
        VM_("Reboot", "reboot", RIGHT_MANAGE, vm_method_reboot),
        VM_("Reset", "reset", RIGHT_MANAGE, vm_method_reset),
        VM_("Pause", "pause", RIGHT_MANAGE, vm_method_pause),
        VM_("Resume", "resume", RIGHT_MANAGE, vm_method_resume),
        VM_("Remove", "remove", RIGHT_MANAGE, vm_method_remove),
        VM_("Update", "update", RIGHT_MANAGE, vm_method_update, .examine = vm_examine_update),
        VM_("GetDefinition", "get-definition", RIGHT_INSPECT, vm_method_get_definition),
        VM_("GetStats", "get-stats", RIGHT_NONE, vm_method_get_stats),
        VM_("OpenConsole", "open-console", RIGHT_CONSOLE, vm_method_open_console,
            .reduced = vm_method_read_console, .examine = vm_examine_open_console),
        VM_("GetConsoleLog", "get-console-log", RIGHT_INSPECT, vm_method_get_console_log),
        VM_("GetLastOutput", "get-last-output", RIGHT_INSPECT, vm_method_get_last_output),
        VM_("OpenVSock", "open-vsock", RIGHT_CONSOLE, vm_method_open_vsock),

        JOB("Cancel", "cancel", RIGHT_MANAGE, job_method_cancel),
};

const Method *method_find(const char *interface, const char *member) {
        for (size_t i = 0; i < ELEMENTSOF(methods); i++)
                if (streq(methods[i].interface, interface) && streq(methods[i].member, member))
                        return methods + i;
        return NULL;
}
