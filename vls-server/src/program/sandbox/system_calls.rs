//! Which system calls a server gives up: seccomp.
//!
//! A list of what is forbidden, not of what is allowed. What a server needs is decided by libraries below it, and differs
//! from one version of the C library to the next: a list of that would end a server that was well, years later and at
//! night. What it never needs is known: other programs and processes, the memory of others, and the parts of the kernel
//! that are for administrators. A forbidden call fails as if its right were missing (`EPERM`).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

use super::Held;

/// Calls that are forbidden whatever their arguments are.
const FORBIDDEN: &[c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes, and what is theirs.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Mounts, roots, namespaces, and files past the rules for their names.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    // The kernel's own code, keys and events.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_syslog,
    // Calls made through a ring are not seen here.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_personality,
];

/// The same, where there are such calls at all.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
    libc::SYS_uselib,
];

/// The same, where there are such calls at all.
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[c_long] = &[];

/// Where sockets may be of: this machine's own, the network's, and what name lookups ask about the network's interfaces.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Numbers from here on are another way to make the same calls (x32).
const X32: u32 = 0x4000_0000;

/// Confines the calling thread and those that it starts.
pub(super) fn confine() -> Held {
    let filters = match filters() {
        Ok(filters) => filters,
        Err(error) => return Held::Not(error.to_string()),
    };
    for filter in &filters {
        if let Err(error) = apply_filter(filter) {
            return Held::Not(error.to_string());
        }
    }
    Held::Wholly
}

fn filters() -> Result<[BpfProgram; 2], BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().chain(FORBIDDEN_HERE).map(|number| (*number, Vec::new())).collect();
    // A new process, which a thread is not.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let process = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![process])?]);
    let other = FAMILIES.map(|family| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    });
    let other = other.into_iter().collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other)?]);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, architecture)?;
    Ok([filter.try_into()?, unknown()])
}

/// What this kernel is said not to have (`ENOSYS`). `clone3` takes its flags from memory, where no filter sees them; a C
/// library that does not find it takes `clone`. The numbers of x32 would lead past the other filter.
fn unknown() -> BpfProgram {
    // Classic BPF (linux/bpf_common.h, linux/seccomp.h).
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERROR: u32 = 0x0005_0000;
    let step = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    // Numbers of system calls are small.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let clone3 = libc::SYS_clone3 as u32;
    vec![
        // The number of the call is what comes first.
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_IF_AT_LEAST, X32, 2, 0),
        step(JUMP_IF_EQUAL, clone3, 1, 0),
        step(RETURN, ALLOW, 0, 0),
        step(RETURN, ERROR | libc::ENOSYS.unsigned_abs(), 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_named_twice_and_the_filter_is_one_that_the_kernel_takes() {
        let all: Vec<_> = FORBIDDEN.iter().chain(FORBIDDEN_HERE).collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        // The most instructions of one program (BPF_MAXINSNS).
        assert!(filters().unwrap().iter().all(|filter| filter.len() <= 4_096));
    }
}
