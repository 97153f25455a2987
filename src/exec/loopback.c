/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "exec/loopback.h"

/* Programs of the kernel's BPF, which it runs when one of the cgroup's processes connects, sends or receives. They are attached for as
 * long as the cgroup is there. */

#define PEERS_MAX 4096U /* who have sent something; the oldest are forgotten */
#define DNS_PORT 53

#define INSN(c, dst, src, offset, value) { .code = (c), .dst_reg = (dst), .src_reg = (src), .off = (offset), .imm = (int32_t) (value) }
#define LOAD(dst, src, offset) INSN(BPF_LDX | BPF_MEM | BPF_W, dst, src, offset, 0)
#define LOAD_POINTER(dst, src, offset) INSN(BPF_LDX | BPF_MEM | BPF_DW, dst, src, offset, 0)
#define STORE(dst, offset, src) INSN(BPF_STX | BPF_MEM | BPF_W, dst, src, offset, 0)
#define STORE_VALUE(dst, offset, value) INSN(BPF_ST | BPF_MEM | BPF_W, dst, 0, offset, value)
#define SET(dst, value) INSN(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, value)
#define MOVE(dst, src) INSN(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0)
#define AND(dst, value) INSN(BPF_ALU64 | BPF_AND | BPF_K, dst, 0, 0, value)
#define ADD(dst, value) INSN(BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, value)
#define JUMP_EQUAL(dst, value, offset) INSN(BPF_JMP32 | BPF_JEQ | BPF_K, dst, 0, offset, value)
#define JUMP_OTHER(dst, value, offset) INSN(BPF_JMP32 | BPF_JNE | BPF_K, dst, 0, offset, value)
#define JUMP_SAME(dst, src, offset) INSN(BPF_JMP32 | BPF_JEQ | BPF_X, dst, src, offset, 0)
#define JUMP_SET(dst, offset) INSN(BPF_JMP | BPF_JNE | BPF_K, dst, 0, offset, 0)
#define SET_MAP(dst, map) INSN(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, map), INSN(0, 0, 0, 0, 0)
#define CALL(function) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, function)
#define EXIT INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

#define ADDRESS offsetof(struct bpf_sock_addr, user_ip4)
#define PORT offsetof(struct bpf_sock_addr, user_port)
#define PROTOCOL offsetof(struct bpf_sock_addr, protocol)
#define MESSAGE_SOURCE offsetof(struct bpf_sock_addr, msg_src_ip4)
#define SOCKET offsetof(struct bpf_sock_addr, sk)
#define SOCKET_SOURCE offsetof(struct bpf_sock, src_ip4)
#define FIRST_OCTET htonl(0xff000000)
#define NET_127 htonl(0x7f000000)

static int bpf(int command, union bpf_attr *attr) {
        int r = (int) syscall(SYS_bpf, command, attr, sizeof(*attr));

        return r < 0 ? -errno : r;
}

/* Peers: address and port to anything */
static int make_map(void) {
        union bpf_attr attr = { .map_type = BPF_MAP_TYPE_LRU_HASH, .key_size = 8, .value_size = 4, .max_entries = PEERS_MAX };

        return bpf(BPF_MAP_CREATE, &attr);
}

static int load(const struct bpf_insn *code, size_t n, unsigned attach_type) {
        union bpf_attr attr = {
                .prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
                .expected_attach_type = attach_type,
                .insns = (uint64_t) (uintptr_t) code,
                .insn_cnt = (uint32_t) n,
                .license = (uint64_t) (uintptr_t) "LGPL",
        };

        return bpf(BPF_PROG_LOAD, &attr);
}

/* May it connect or send there? 1: it may. Nothing that leaves comes from there, and nothing from where a message says and its socket is not:
 * what comes back in would be noted as somebody else's. */
static int load_check(int map, uint32_t resolver, unsigned attach_type) {
        bool message = attach_type == BPF_CGROUP_UDP4_SENDMSG;
        const struct bpf_insn code[] = {
                MOVE(BPF_REG_6, BPF_REG_1),
                LOAD_POINTER(BPF_REG_1, BPF_REG_6, SOCKET),
                LOAD(BPF_REG_9, BPF_REG_1, SOCKET_SOURCE),
                LOAD(BPF_REG_2, message ? BPF_REG_6 : BPF_REG_1, message ? MESSAGE_SOURCE : SOCKET_SOURCE),
                JUMP_SAME(BPF_REG_2, BPF_REG_9, 2),
                AND(BPF_REG_2, FIRST_OCTET),
                JUMP_EQUAL(BPF_REG_2, NET_127, 21),                     /* to the refusal */
                LOAD(BPF_REG_7, BPF_REG_6, ADDRESS),
                JUMP_EQUAL(BPF_REG_7, 0, 19),                           /* to the refusal */
                MOVE(BPF_REG_2, BPF_REG_7),
                AND(BPF_REG_2, FIRST_OCTET),
                JUMP_EQUAL(BPF_REG_2, NET_127, 3),
                AND(BPF_REG_9, FIRST_OCTET),
                JUMP_EQUAL(BPF_REG_9, NET_127, 14),                     /* to the refusal */
                JUMP_OTHER(BPF_REG_9, NET_127, 15),                     /* to the permission */
                LOAD(BPF_REG_8, BPF_REG_6, PORT),
                JUMP_OTHER(BPF_REG_7, resolver, 1),
                JUMP_EQUAL(BPF_REG_8, htons(DNS_PORT), 12),
                LOAD(BPF_REG_2, BPF_REG_6, PROTOCOL),
                JUMP_OTHER(BPF_REG_2, IPPROTO_UDP, 8),
                STORE(BPF_REG_10, -8, BPF_REG_7),
                STORE(BPF_REG_10, -4, BPF_REG_8),
                MOVE(BPF_REG_2, BPF_REG_10),
                ADD(BPF_REG_2, -8),
                SET_MAP(BPF_REG_1, map),
                CALL(BPF_FUNC_map_lookup_elem),
                JUMP_SET(BPF_REG_0, 2),
                SET(BPF_REG_0, 0),
                EXIT,
                SET(BPF_REG_0, 1),
                EXIT,
        };

        return load(code, ELEMENTSOF(code), attach_type);
}

/* Notes who has sent something. */
static int load_note(int map, unsigned attach_type) {
        const struct bpf_insn code[] = {
                LOAD(BPF_REG_7, BPF_REG_1, ADDRESS),
                MOVE(BPF_REG_2, BPF_REG_7),
                AND(BPF_REG_2, FIRST_OCTET),
                JUMP_OTHER(BPF_REG_2, NET_127, 12),
                LOAD(BPF_REG_8, BPF_REG_1, PORT),
                STORE(BPF_REG_10, -8, BPF_REG_7),
                STORE(BPF_REG_10, -4, BPF_REG_8),
                STORE_VALUE(BPF_REG_10, -12, 1),
                MOVE(BPF_REG_2, BPF_REG_10),
                ADD(BPF_REG_2, -8),
                MOVE(BPF_REG_3, BPF_REG_10),
                ADD(BPF_REG_3, -12),
                SET_MAP(BPF_REG_1, map),
                SET(BPF_REG_4, BPF_ANY),
                CALL(BPF_FUNC_map_update_elem),
                SET(BPF_REG_0, 1),
                EXIT,
        };

        return load(code, ELEMENTSOF(code), attach_type);
}

/* The cgroup as a file system of its own, wherever the host has mounted the whole */
static int open_cgroup(void) {
        _cleanup_close_ int fs = fsopen("cgroup2", FSOPEN_CLOEXEC);
        int fd;

        if (fs < 0 || fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
                return -errno;
        fd = fsmount(fs, FSMOUNT_CLOEXEC, 0);
        return fd < 0 ? -errno : fd;
}

static int attach(int cgroup, int program, unsigned attach_type) {
        union bpf_attr attr = {
                .target_fd = (uint32_t) cgroup,
                .attach_bpf_fd = (uint32_t) program,
                .attach_type = attach_type,
                .attach_flags = BPF_F_ALLOW_MULTI,
        };

        return program < 0 ? program : bpf(BPF_PROG_ATTACH, &attr);
}

int loopback_shut(uint32_t resolver) {
        static const unsigned checked[] = { BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_UDP4_SENDMSG };
        _cleanup_close_ int cgroup = open_cgroup(), map = -EBADF, note = -EBADF;
        int r;

        if (cgroup < 0)
                return cgroup;
        map = make_map();
        if (map < 0)
                return map;
        for (size_t i = 0; i < ELEMENTSOF(checked); i++) {
                _cleanup_close_ int check = load_check(map, resolver, checked[i]);

                r = attach(cgroup, check, checked[i]);
                if (r < 0)
                        return r;
        }
        note = load_note(map, BPF_CGROUP_UDP4_RECVMSG);
        return attach(cgroup, note, BPF_CGROUP_UDP4_RECVMSG);
}
