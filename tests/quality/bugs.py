"""Seeded bugs: each is one change of a source, of a kind that implementations have had."""

# (module, what stands there, what the bug makes of it), seen by the golden vectors
BOUNDS_BUGS = [
    ("model.bounds", "carry = top < bottom", "carry = top <= bottom"),
    ("model.bounds", "+ internal + carry & 3", "+ internal & 3"),
    ("model.bounds", "(bottom >> shift) - 1 & 7", "(bottom >> shift) & 7"),
    ("model.bounds", "- address_above", "+ address_above"),
    ("model.bounds", "(length_high > 1)", "(length_high > 2)"),
    ("model.bounds", "top ^ wrapped <<", "top ^ 0 <<"),
    ("model.bounds", "exponent < fmt.max_exponent, exponent, fmt.max_exponent", "exponent < 64, exponent, fmt.max_exponent"),
    ("model.bounds", "internal = length >> fmt.mantissa_width - 2 != 0", "internal = length >> fmt.mantissa_width - 1 != 0"),
    ("model.bounds", "top_granule = top + (1 << alignment) - 1 >> alignment", "top_granule = top >> alignment"),
    ("model.bounds", "exact = (base | top)", "exact = base"),
    ("model.bounds", "top_granule + grown >> grown", "top_granule >> grown"),
    ("model.bounds", "exponent = exponent + grown", "exponent = exponent"),
    ("model.bounds", "(exponent >= fmt.max_exponent - 2)", "(exponent >= fmt.max_exponent)"),
    ("model.bounds", "increment_middle >= room", "increment_middle > room"),
    ("model.bounds", "length + (mask ^ fmt.address_mask) & mask", "length & mask"),
    ("model.capability", "(address >= base) & (address + size <= top)", "(address >= base)"),
    ("model.capability", "permissions >> fmt.software_permissions_shift", "permissions >> 0"),
    ("fastpath.bounds", "np.less(top, base, out=top_high)", "top_high.fill(False)"),
    ("fastpath.bounds", "np.minimum(exponent, fmt.max_exponent, out=exponent)", "pass"),
    ("fastpath.bounds", "np.bitwise_or(short, eighth, out=short)", "pass"),
    ("fastpath.bounds", "np.not_equal(length, top_high, out=top_high)", "pass"),
    ("fastpath.bounds", "np.add(offset, mask, out=offset)", "pass"),
    ("fastpath.bounds", "np.bitwise_and(grown, internal, out=grown)", "pass"),
    ("fastpath.bounds", "np.add(top, grown, out=top)", "pass"),
    ("fastpath.bounds", "np.add(short, eighth, out=short)", "pass"),
    ("fastpath.bits", "_FLOAT_2_52 | 1", "_FLOAT_2_52"),
    ("fastpath.capability", "np.less(end, address, out=end_high)", "end_high.fill(False)"),
]

# (module, what stands there, what the bug makes of it, an operation that shows it), seen by the differential test
OPERATION_BUGS = [
    ("fastpath.capability", "np.logical_and(permitted, authority.tag, out=permitted)", "pass", "cseal"),
    ("fastpath.capability", "np.less_equal(authority.address, fmt.max_otype, out=flag)", "flag.fill(True)", "cseal"),
    ("fastpath.capability", "np.copyto(field, fmt.null_meta & fmt.bounds.in_place, where=high)", "pass", "cbuildcap"),
    ("model.capability", "allowed = not_(cap.is_sealed) & within_bounds", "allowed = within_bounds", "csetbounds"),
    ("fastpath.capability", "np.equal(inner.tag, outer.tag, out=flag)", "flag.fill(True)", "ctestsubset"),
    ("fastpath.isa.memory", "np.greater(stored.tag, needed, out=needed)", "np.copyto(needed, stored.tag)", "csc"),
    ("fastpath.isa.memory", "np.logical_and(loaded.tag, may_load, out=loaded.tag)", "pass", "clc"),
    ("fastpath.memory", "if straddles.any():", "if False:", "csd"),
    ("fastpath.memory", "np.add(address, size_bytes - 1, out=index)", "np.copyto(index, address)", "csd"),
    ("model.memory", "self.store.set(index, Granule(False,", "self.store.set(index, Granule(True,", "csb"),
    ("model.isa.memory", "if access.authority.is_sealed:", "if False:", "clb"),
    ("model.isa.memory", 'raise Trap("PermitStoreCapViolation", access.register)', "pass", "csc"),
]

# (module, what stands there, what the bug makes of it), of whole steps: for campaigns
STEP_BUGS = [
    # a reservation that survives, or is found where there is none
    ("fastpath.isa.atomic", "np.copyto(block.is_reserved, False, where=completed)", "pass"),
    ("fastpath.isa.atomic", "np.logical_and(held, block.is_reserved, out=held)", "pass"),
    ("fastpath.isa.atomic", "np.logical_and(held, completed, out=stores)", "np.copyto(stores, completed)"),
    ("fastpath.machine", "    block.is_reserved.fill(False)\n", ""),
    ("model.machine", "self.is_reserved = False\n        self.mepcc", "self.mepcc"),
    # comparisons off by one, targets and links
    ("fastpath.isa.control", "np.less(a, b, out=less)", "np.less_equal(a, b, out=less)"),
    ("fastpath.isa.control", "target, PCC_INDEX, taken)", "target, PCC_INDEX)"),
    ("fastpath.isa.control", "meta, block.format.otype_sentry, link.meta)", "meta, block.format.otype_unsealed, link.meta)"),
    ("fastpath.isa.control", "np.bitwise_and(out, block.format.address_mask - 1, out=out)", "pass"),
    ("model.isa.control", "if code.otype != data.otype:", "if False:"),
    # traps in the wrong order, or with the wrong value
    (
        "fastpath.isa.memory",
        'self.check_permission(Permission.LOAD, "PermitLoadViolation")\n        self.check_usable()',
        'self.check_usable()\n        self.check_permission(Permission.LOAD, "PermitLoadViolation")',
    ),
    (
        "fastpath.isa.memory",
        'self.check_permission(Permission.STORE, "PermitStoreViolation")\n        self.check_usable()',
        'self.check_usable()\n        self.check_permission(Permission.STORE, "PermitStoreViolation")',
    ),
    ("fastpath.isa.memory", "np.copyto(block.trap_value, self.address, where=by_memory)", "pass"),
    # a block's tail that is stale, lanes that are left behind
    (
        "fastpath.machine",
        "stops = [min(start + block_lanes, lanes) for start in starts]",
        "stops = [min(start + block_lanes, lanes) - (start > 0) for start in starts]",
    ),
    ("fastpath.machine", "            machine.is_reserved[self.lanes] = self._reserved\n", "            pass\n"),
    ("fastpath.machine", "            np.copyto(self.pc, self.next_pc)\n", "            pass\n"),
    ("fastpath.machine", "where = self._where(register, _SINK)", "where = self._where(register)"),
    # c0, PCC, the handler
    ("fastpath.machine", "return self._rows[register or _SINK]", "return self._rows[register]"),
    ("fastpath.machine", "if leaves and len(completed):", "if False:"),
    ("fastpath.machine", "np.multiply(previous, MSTATUS_MPIE // MSTATUS_MIE, out=previous)", "pass"),
    (
        "fastpath.machine",
        "np.bitwise_and(pcc.address, fmt.address_mask - 3, out=block.next_pc)",
        "np.copyto(block.next_pc, pcc.address)",
    ),
    ("model.machine", "if not_(self.pcc.permits(Permission.EXECUTE)):", "if False:"),
    ("model.machine", "if not_(self.pcc.permits(Permission.ACCESS_SYSTEM_REGISTERS)):", "if False:"),
    ("model.machine", "self.pcc, self.pc = self.mtcc, ", "self.pc = "),
    # aliasing: the destination is written before a source is read
    (
        "fastpath.isa.arithmetic",
        "capability.to_memory(block.format, block.integer(rs2), upper)\n    np.copyto(target.address, block.integer(cs1))",
        "np.copyto(target.address, block.integer(cs1))\n    capability.to_memory(block.format, block.integer(rs2), upper)",
    ),
    ("fastpath.isa.atomic", "np.copyto(value, block.integer(rs2))", "value.fill(0)"),
    # the reference's own
    ("model.isa.memory", "if not_(capability.within_bounds(access.authority, access.address, size_bytes)):", "if False:"),
    ("model.isa.memory", "return found.tagged_if(access.authority.permits(Permission.LOAD_CAPABILITY))", "return found"),
    ("model.isa.integer", "hart.integer(rs1) + hart.integer(rs2)", "hart.integer(rs1) - hart.integer(rs2)"),
    ("model.capability", "& not_(cap.has_reserved_otype)\n", ""),
    ("model.capability", "(authority.address == cap.otype)", "(authority.address >= cap.otype)"),
    ("model.capability", "cap.permissions & mask", "cap.permissions | mask"),
]
