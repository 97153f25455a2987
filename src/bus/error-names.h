/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The errors of the D-Bus API, see docs/dbus-api.md. Code below the wire sets them in an sd_bus_error as well, for a
 * sentence that a person can use has to be made where the fault is known. */
#define VMUNIT_ERROR_NO_SUCH_VM "org.vmunit1.Error.NoSuchVM"
#define VMUNIT_ERROR_VM_EXISTS "org.vmunit1.Error.VMExists"
#define VMUNIT_ERROR_INVALID_DEFINITION "org.vmunit1.Error.InvalidDefinition"
#define VMUNIT_ERROR_NOT_SUPPORTED "org.vmunit1.Error.NotSupported"
#define VMUNIT_ERROR_INVALID_STATE "org.vmunit1.Error.InvalidState"
#define VMUNIT_ERROR_BUSY "org.vmunit1.Error.Busy"
#define VMUNIT_ERROR_CANCELED "org.vmunit1.Error.Canceled"
#define VMUNIT_ERROR_NOT_RUNNING "org.vmunit1.Error.NotRunning"
#define VMUNIT_ERROR_REMOVING "org.vmunit1.Error.Removing"
#define VMUNIT_ERROR_BACKEND_UNAVAILABLE "org.vmunit1.Error.BackendUnavailable"
#define VMUNIT_ERROR_BACKEND_FAILED "org.vmunit1.Error.BackendFailed"
#define VMUNIT_ERROR_TIMEOUT "org.vmunit1.Error.Timeout"
#define VMUNIT_ERROR_NO_SPACE "org.vmunit1.Error.NoSpace"
