/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Byte i of what `spew` writes */
static inline char pattern(unsigned long i) {
        return (char) ('a' + (i * 7 + i / 251 + i / 65537) % 26);
}
