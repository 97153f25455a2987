/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The vsock guest, for Firecracker (virtio by MMIO) and Cloud Hypervisor (virtio by PCI): a PVH kernel that says VSOCK-UP on the serial
 * port when its driver is ready, and then
 *   on port 1024   gives back what it is sent
 *   on port 1025   says nothing at all, like a guest that hangs
 *   on all others  says that nobody is there.
 * It looks at its rings each millisecond; interrupts of the device it does without. vsock-pvh.s calls guest_main(), in long mode. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ECHO_PORT 1024U
#define SILENT_PORT 1025U
#define DEVICE_VSOCK 19U

#define CONNECTIONS 8U
#define BUFFER_SIZE 16384U /* of a connection, which is its credit */
#define PACKET_SIZE 4096U
#define RX_PACKETS 8U
#define RING_SIZE 16U /* two descriptors a packet: its header, its data */

extern uint64_t directories[]; /* a page of 2 MiB each */
void sleep(void);
void guest_main(const uint8_t *pvh);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);

/* What the device sees */

typedef struct Descriptor {
        uint64_t address;
        uint32_t size;
        uint16_t flags, next;
} Descriptor;

enum { DESCRIPTOR_NEXT = 1, DESCRIPTOR_WRITE = 2, AVAIL_NO_INTERRUPT = 1 };

typedef struct Queue {
        _Alignas(16) Descriptor descriptors[RING_SIZE];
        struct {
                uint16_t flags, index, ring[RING_SIZE], event;
        } avail;
        struct {
                _Alignas(4) uint16_t flags;
                uint16_t index;
                struct {
                        uint32_t id, size;
                } ring[RING_SIZE];
                uint16_t event;
        } used;
        uint16_t seen; /* of used */
        volatile uint32_t *bell;
} Queue;

typedef struct __attribute__((packed)) Header {
        uint64_t from_cid, to_cid;
        uint32_t from_port, to_port, size;
        uint16_t type, op;
        uint32_t flags, credit, taken;
} Header;

enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };
enum { SHUTDOWN_RECEIVE = 1, SHUTDOWN_SEND = 2 };
enum { RX, TX, EVENTS, QUEUES };

typedef struct Connection {
        bool used, ended, closed; /* it sends no more; it wants no more */
        uint32_t port;
        uint32_t peer_credit, peer_taken;
        uint32_t got, sent;  /* bytes in all; those between wait in the buffer */
        uint8_t buffer[BUFFER_SIZE];
} Connection;

static Queue queues[QUEUES];
static Header rx_headers[RX_PACKETS], tx_header;
static uint8_t rx_data[RX_PACKETS][PACKET_SIZE];
static Connection connections[CONNECTIONS];
static uint64_t own_cid;

/* The machine */

static void print(const char *text) {
        for (; *text; text++)
                __asm__ volatile("outb %0, %1" ::"a"(*text), "Nd"((uint16_t) 0x3f8));
}

static uint32_t get32(const uint8_t *p) {
        return *(const volatile uint32_t *) p;
}

static void barrier(void) {
        __asm__ volatile("mfence" ::: "memory");
}

/* The compiler calls these as well. */
void *memcpy(void *to, const void *from, size_t n) {
        void *p = to;

        __asm__ volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n)::"memory");
        return to;
}

void *memset(void *to, int value, size_t n) {
        void *p = to;

        __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(value) : "memory");
        return to;
}

/* The device: its registers are the same by MMIO, where all have 32 bits, and by PCI, but for where they are */

enum { STATUS, FEATURES_SELECT, FEATURES, QUEUE_SELECT, QUEUE_SIZE, QUEUE_ADDRESS, QUEUE_AVAIL, QUEUE_USED, QUEUE_ENABLE };

static const struct {
        uint8_t mmio, pci, pci_bits;
} registers[] = {
        [STATUS] = { 0x70, 20, 8 },
        [FEATURES_SELECT] = { 0x24, 8, 32 },
        [FEATURES] = { 0x20, 12, 32 },
        [QUEUE_SELECT] = { 0x30, 22, 16 },
        [QUEUE_SIZE] = { 0x38, 24, 16 },
        [QUEUE_ADDRESS] = { 0x80, 32, 32 }, /* these have another half, which is 0 */
        [QUEUE_AVAIL] = { 0x90, 40, 32 },
        [QUEUE_USED] = { 0xa0, 48, 32 },
        [QUEUE_ENABLE] = { 0x44, 28, 16 },
};

static uint8_t *mmio, *common, *notify, *config; /* the first, or the others by PCI */
static uint32_t notify_step;

static void put(unsigned what, uint32_t value) {
        uint8_t *p = common + registers[what].pci;

        if (mmio)
                *(volatile uint32_t *) (mmio + registers[what].mmio) = value;
        else if (registers[what].pci_bits == 8)
                *(volatile uint8_t *) p = (uint8_t) value;
        else if (registers[what].pci_bits == 16)
                *(volatile uint16_t *) p = (uint16_t) value;
        else
                *(volatile uint32_t *) p = value;
}

static void put_pointer(unsigned what, const volatile void *p) {
        put(what, (uint32_t) (uintptr_t) p);
}

static void set_up(void) {
        uint32_t status = 0;

        put(STATUS, 0);
        put(STATUS, status |= 1); /* seen; one bit more at a time, as Firecracker wants it */
        put(STATUS, status |= 2); /* there is a driver */
        put(FEATURES_SELECT, 1);  /* those from 32 to 63, of which it takes version 1 alone */
        put(FEATURES, 1);
        put(STATUS, status |= 8); /* that's all */
        for (uint32_t n = 0; n < QUEUES; n++) {
                Queue *q = queues + n;

                put(QUEUE_SELECT, n);
                put(QUEUE_SIZE, RING_SIZE);
                put_pointer(QUEUE_ADDRESS, q->descriptors);
                put_pointer(QUEUE_AVAIL, &q->avail);
                put_pointer(QUEUE_USED, &q->used);
                put(QUEUE_ENABLE, 1);
                q->avail.flags = AVAIL_NO_INTERRUPT;
                q->bell = (volatile uint32_t *) (mmio ? mmio + 0x50 : notify + *(volatile uint16_t *) (common + 30) * notify_step);
        }
        own_cid = get32(config);
        put(STATUS, status | 4); /* ready */
}

/* By MMIO: a page each, of which the kernel's command line tells: virtio_mmio.device=4K@0xd0000000:5 */

static bool begins(const char *text, const char *with) {
        while (*with)
                if (*text++ != *with++)
                        return false;
        return true;
}

static uint8_t *parse_hex(const char *p) {
        uintptr_t value = 0;

        for (;; p++)
                if (*p >= '0' && *p <= '9')
                        value = value * 16 + (uintptr_t) (*p - '0');
                else if (*p >= 'a' && *p <= 'f')
                        value = value * 16 + (uintptr_t) (*p - 'a' + 10);
                else
                        return (uint8_t *) value;
}

static bool find_mmio(const char *line) {
        bool in_device = false;

        for (; *line; line++) {
                in_device = begins(line, "virtio_mmio.device=") || (in_device && *line != ' ');
                if (!in_device || !begins(line, "@0x"))
                        continue;
                mmio = parse_hex(line + 3);
                config = mmio + 0x100;
                if (get32(mmio) == 0x74726976 && get32(mmio + 8) == DEVICE_VSOCK) /* "virt" */
                        return true;
        }
        mmio = NULL;
        return false;
}

/* By PCI: capabilities tell where in which BAR the structures are */

enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_CONFIG = 4, CAP_VENDOR = 9 };

static uint32_t pci_read(uint32_t device, uint32_t offset) {
        uint32_t value, address = 0x80000000 | device << 11 | (offset & ~3U);

        __asm__ volatile("outl %0, %1" ::"a"(address), "Nd"((uint16_t) 0xcf8));
        __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"((uint16_t) 0xcfc));
        return value;
}

static void pci_write(uint32_t device, uint32_t offset, uint32_t value) {
        pci_read(device, offset);
        __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"((uint16_t) 0xcfc));
}

/* Where the BAR is seen. One above 4 GiB takes the place of the last two pages below 2 GiB, where tests have no memory. */
static uint8_t *pci_map(uint32_t device, uint32_t bar) {
        uint32_t low = pci_read(device, 0x10 + 4 * bar);
        uint64_t address = low & ~15U;
        size_t slot = 1022;

        if ((low & 6) == 4)
                address |= (uint64_t) pci_read(device, 0x14 + 4 * bar) << 32;
        if (address >> 32 == 0)
                return (uint8_t *) address;
        directories[slot] = (address & ~UINT64_C(0x1fffff)) | 0x93; /* present, writable, not cached, 2 MiB */
        directories[slot + 1] = directories[slot] + 0x200000;
        __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" ::: "rax", "memory");
        return (uint8_t *) (slot << 21 | (address & 0x1fffff));
}

static bool find_pci(void) {
        uint32_t device = 0;

        while (pci_read(device, 0) != (0x1af4 | (0x1040 + DEVICE_VSOCK) << 16))
                if (++device == 32)
                        return false;
        pci_write(device, 4, 6); /* memory, master of the bus */
        for (uint32_t cap = pci_read(device, 0x34) & 0xff; cap; cap = pci_read(device, cap) >> 8 & 0xff) {
                uint32_t head = pci_read(device, cap), kind = head >> 24;

                if ((head & 0xff) != CAP_VENDOR || (kind != CAP_COMMON && kind != CAP_NOTIFY && kind != CAP_CONFIG))
                        continue;
                uint8_t *p = pci_map(device, pci_read(device, cap + 4) & 0xff) + pci_read(device, cap + 8);
                *(kind == CAP_COMMON ? &common : kind == CAP_NOTIFY ? &notify : &config) = p;
                if (kind == CAP_NOTIFY)
                        notify_step = pci_read(device, cap + 16);
        }
        return common && notify && config;
}

/* Rings */

static uint16_t used_index(const Queue *q) {
        return *(const volatile uint16_t *) &q->used.index;
}

static void offer(uint32_t n, uint16_t descriptor) {
        Queue *q = queues + n;

        q->avail.ring[q->avail.index % RING_SIZE] = descriptor;
        barrier();
        q->avail.index++;
        barrier();
        *q->bell = n;
}

static void offer_rx(uint16_t packet) {
        Descriptor *d = queues[RX].descriptors + 2 * packet;

        d[0] = (Descriptor) { (uintptr_t) (rx_headers + packet), sizeof(Header), DESCRIPTOR_NEXT | DESCRIPTOR_WRITE, (uint16_t) (2 * packet + 1) };
        d[1] = (Descriptor) { (uintptr_t) rx_data[packet], PACKET_SIZE, DESCRIPTOR_WRITE, 0 };
        offer(RX, (uint16_t) (2 * packet));
}

/* Waits until the device has taken it. */
static void send(uint16_t op, uint32_t own_port, uint32_t port, const Connection *c, const uint8_t *data, uint32_t size) {
        Queue *q = queues + TX;

        tx_header = (Header) {
                .from_cid = own_cid, .to_cid = 2, .from_port = own_port, .to_port = port, .size = size,
                .type = 1, .op = op, .credit = BUFFER_SIZE, .taken = c ? c->sent + size : 0,
        };
        q->descriptors[0] = (Descriptor) { (uintptr_t) &tx_header, sizeof(Header), size ? DESCRIPTOR_NEXT : 0, 1 };
        q->descriptors[1] = (Descriptor) { (uintptr_t) data, size, 0, 0 };
        offer(TX, 0);
        while (used_index(q) != q->avail.index)
                __asm__ volatile("pause");
}

/* Connections */

static Connection *find_connection(uint32_t port, bool used) {
        for (uint32_t i = 0; i < CONNECTIONS; i++)
                if (connections[i].used == used && (!used || connections[i].port == port))
                        return connections + i;
        return NULL;
}

static bool accept(const Header *h) {
        Connection *c = find_connection(0, false);

        if (h->to_port != ECHO_PORT || !c || find_connection(h->from_port, true))
                return false;
        c->used = true;
        c->port = h->from_port;
        c->ended = c->closed = false;
        c->peer_credit = h->credit;
        c->got = c->sent = c->peer_taken = 0;
        send(OP_RESPONSE, ECHO_PORT, c->port, c, NULL, 0);
        return true;
}

static bool keep(Connection *c, const uint8_t *data, uint32_t size) {
        if (size > PACKET_SIZE || size > BUFFER_SIZE - (c->got - c->sent))
                return false; /* more than the credit */
        for (uint32_t n = 0, part; n < size; n += part) {
                uint32_t at = c->got % BUFFER_SIZE;

                part = size - n < BUFFER_SIZE - at ? size - n : BUFFER_SIZE - at;
                memcpy(c->buffer + at, data + n, part);
                c->got += part;
        }
        return true;
}

/* False if it has to be told that there is no such connection, or none any more. */
static bool take_packet(const Header *h, const uint8_t *data) {
        Connection *c = find_connection(h->from_port, true);

        if (h->op == OP_RST || h->to_port == SILENT_PORT) {
                if (c && h->to_port == ECHO_PORT)
                        c->used = false;
                return true;
        }
        if (h->op == OP_REQUEST)
                return accept(h);
        if (!c || h->to_port != ECHO_PORT)
                return false;
        c->peer_credit = h->credit;
        c->peer_taken = h->taken;
        if (h->op == OP_CREDIT_REQUEST)
                send(OP_CREDIT_UPDATE, ECHO_PORT, c->port, c, NULL, 0);
        if (h->op == OP_SHUTDOWN) {
                c->ended = c->ended || h->flags & SHUTDOWN_SEND;
                c->closed = c->closed || h->flags & SHUTDOWN_RECEIVE;
        }
        return h->op != OP_RW || keep(c, data, h->size);
}

static void look_at_ring(void) {
        Queue *q = queues + RX;

        for (; q->seen != used_index(q); q->seen++) {
                uint16_t packet;

                barrier();
                packet = (uint16_t) (q->used.ring[q->seen % RING_SIZE].id / 2);
                const Header h = rx_headers[packet];
                if (!take_packet(&h, rx_data[packet])) {
                        Connection *c = find_connection(h.from_port, true);

                        if (c)
                                c->used = false;
                        send(OP_RST, h.to_port, h.from_port, NULL, NULL, 0);
                }
                offer_rx(packet);
        }
}

/* Gives back as much as the other side has room for. */
static void give_back(Connection *c) {
        for (;;) {
                uint32_t at = c->sent % BUFFER_SIZE, size = c->got - c->sent, room = c->peer_credit - (c->sent - c->peer_taken);

                size = size < room ? size : room;
                size = size < PACKET_SIZE ? size : PACKET_SIZE;
                size = size < BUFFER_SIZE - at ? size : BUFFER_SIZE - at;
                if (size == 0 || c->closed)
                        break;
                send(OP_RW, ECHO_PORT, c->port, c, c->buffer + at, size);
                c->sent += size;
        }
        if (c->closed || (c->ended && c->sent == c->got)) {
                send(OP_RST, ECHO_PORT, c->port, c, NULL, 0);
                c->used = false;
        }
}

void guest_main(const uint8_t *pvh) {
        if (!find_mmio((const char *) (uintptr_t) get32(pvh + 24)) && !find_pci()) { /* there is the address of the command line */
                print("NO-VSOCK\r\n");
                return;
        }
        set_up();
        for (uint16_t packet = 0; packet < RX_PACKETS; packet++)
                offer_rx(packet);
        print("VSOCK-UP\r\n");
        for (;;) {
                look_at_ring();
                for (uint32_t i = 0; i < CONNECTIONS; i++)
                        if (connections[i].used)
                                give_back(connections + i);
                sleep();
        }
}
