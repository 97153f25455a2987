/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* MESSAGE_ID= of the journal's messages, see sd_journal_print(3) and docs/operations.md. They never change. */
#define MESSAGE_VM_CREATED "5a04aa6ac21d410280d2efc051e2266c"
#define MESSAGE_VM_STARTING "07488a0e4d90461cbda9dd4795543ab9"
#define MESSAGE_VM_RUNNING "aa875d2aa99f46b19ef5cc8ed8b05bd1"
#define MESSAGE_VM_PAUSED "fec74500f6e54679a9e86c15b7268900"
#define MESSAGE_VM_STOPPING "1c672915e70c457a9f97414e664b2751"
#define MESSAGE_VM_STOPPED "1294f8c17b994f899c344fbf8fec53de"
#define MESSAGE_VM_ERROR "6ec0b17f61834244a25b90452d173112"
#define MESSAGE_VM_REMOVING "3be204ae5605424d83031fb6531a607d"
#define MESSAGE_VM_REMOVED "0a0cb048667e4ea5ab979706f9b9f1c8"
#define MESSAGE_VM_EVENT "c6eac5b69324490b90a3d76f5c62a574"
#define MESSAGE_VM_STAGE "9075e934be27424f9cabd22de2fde8b1"
#define MESSAGE_VM_OUTPUT "5eb99fc3a48e48d58cb6f4ef5ab4c2d8"
