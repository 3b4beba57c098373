/* Reads rules and writes the classic BPF that libseccomp makes of them: an oracle for our own compiler.
   Lines on standard input: "NAME-OR-NUMBER allow|eperm|enosys [ARG OP VALUE [MASK]]"; anything else is ENOSYS. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    char line[256];
    if (!ctx || seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS)))
        return 2;
    while (fgets(line, sizeof line, stdin)) {
        char name[64], action[16], op[16];
        unsigned arg;
        unsigned long long value, mask;
        int n = sscanf(line, "%63s %15s %u %15s %llu %llu", name, action, &arg, op, &value, &mask);
        if (n < 2)
            continue;
        int nr = name[0] >= '0' && name[0] <= '9' ? atoi(name) : seccomp_syscall_resolve_name(name);
        if (nr < 0) {
            fprintf(stderr, "unknown %s\n", name);
            continue;
        }
        unsigned act = strcmp(action, "allow") == 0 ? SCMP_ACT_ALLOW
                     : strcmp(action, "eperm") == 0 ? SCMP_ACT_ERRNO(EPERM)
                                                    : SCMP_ACT_ERRNO(ENOSYS);
        if (act == SCMP_ACT_ERRNO(ENOSYS))
            continue; /* the default */
        int r;
        if (n == 2)
            r = seccomp_rule_add(ctx, act, nr, 0);
        else if (strcmp(op, "masked") == 0)
            r = seccomp_rule_add(ctx, act, nr, 1, SCMP_CMP(arg, SCMP_CMP_MASKED_EQ, mask, value));
        else
            r = seccomp_rule_add(ctx, act, nr, 1, SCMP_CMP(arg, SCMP_CMP_EQ, value));
        if (r) {
            fprintf(stderr, "rule %s: %s\n", line, strerror(-r));
            return 3;
        }
    }
    return seccomp_export_bpf(ctx, 1) ? 4 : 0;
}
