/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "cli/cli-agent.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-json.h"

int bus_connect(sd_bus **ret) {
        _cleanup_(sd_bus_unrefp) sd_bus *bus = NULL;
        int r;

        r = sd_bus_open_system_with_description(&bus, "vmunit");
        if (r < 0) {
                say("vmunit", "cannot reach the system bus: %s; is it running: `systemctl status dbus`", strerror(-r));
                return r;
        }
        *ret = TAKE_PTR(bus);
        return 0;
}

int bus_connect_asking(const Args *a, sd_bus **ret) {
        int r;

        r = bus_connect(ret);
        if (r < 0 || a->no_ask_password)
                return r;
        (void) sd_bus_set_allow_interactive_authorization(*ret, true);
        (void) sd_bus_set_method_call_timeout(*ret, UINT64_MAX);
        agent_open();
        return 0;
}

int say_bad_reply(const char *name, int r) {
        say(name, "cannot read vmunitd's answer: %s", strerror(-r));
        return r;
}

int bus_get_vm(sd_bus *bus, Verb verb, const char *name, char **ret_path) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        const char *path;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "GetVM", &error, &reply, "s", name);
        if (r < 0)
                return say_bus_error(name, verb, &error, r);

        r = sd_bus_message_read(reply, "o", &path);
        if (r < 0)
                return say_bad_reply(name, r);

        *ret_path = strdup(path);
        return *ret_path ? 0 : say_oom();
}

int bus_call_vm(sd_bus *bus, Verb verb, const char *name, const char *path, const char *member, sd_bus_message **ret) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, path, VM_INTERFACE, member, &error, ret, "a{sv}", 0);
        return r < 0 ? say_bus_error(name, verb, &error, r) : 0;
}

int bus_get_all(sd_bus *bus, Verb verb, const char *name, const char *path, const char *interface, json_object **ret) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, path, PROPERTIES_INTERFACE, "GetAll", &error, &reply, "s", interface);
        if (r < 0)
                return say_bus_error(name, verb, &error, r);

        r = json_from_message(reply, ret);
        return r < 0 ? say_bad_reply(name, r) : 0;
}
