"""Every on-disk structure, pinned: field, byte offset, bytes.

The table is the kernel's (ext4 docs; fs/ext4/ext4.h and include/linux/jbd2.h), written out so that no edit of
a definition can move a field unnoticed.
"""

from __future__ import annotations

import importlib
from typing import Any

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Corrupt
from py4fs.ext4.layout.codec import Codec, derive

TABLE = {
    "superblock.Superblock 1024": """
        0x000   4 s_inodes_count
        0x004   4 s_blocks_count_lo
        0x008   4 s_r_blocks_count_lo
        0x00c   4 s_free_blocks_count_lo
        0x010   4 s_free_inodes_count
        0x014   4 s_first_data_block
        0x018   4 s_log_block_size
        0x01c   4 s_log_cluster_size
        0x020   4 s_blocks_per_group
        0x024   4 s_clusters_per_group
        0x028   4 s_inodes_per_group
        0x02c   4 s_mtime
        0x030   4 s_wtime
        0x034   2 s_mnt_count
        0x036   2 s_max_mnt_count
        0x038   2 s_magic
        0x03a   2 s_state
        0x03c   2 s_errors
        0x03e   2 s_minor_rev_level
        0x040   4 s_lastcheck
        0x044   4 s_checkinterval
        0x048   4 s_creator_os
        0x04c   4 s_rev_level
        0x050   2 s_def_resuid
        0x052   2 s_def_resgid
        0x054   4 s_first_ino
        0x058   2 s_inode_size
        0x05a   2 s_block_group_nr
        0x05c   4 s_feature_compat
        0x060   4 s_feature_incompat
        0x064   4 s_feature_ro_compat
        0x068  16 s_uuid
        0x078  16 s_volume_name
        0x088  64 s_last_mounted
        0x0c8   4 s_algorithm_usage_bitmap
        0x0cc   1 s_prealloc_blocks
        0x0cd   1 s_prealloc_dir_blocks
        0x0ce   2 s_reserved_gdt_blocks
        0x0d0  16 s_journal_uuid
        0x0e0   4 s_journal_inum
        0x0e4   4 s_journal_dev
        0x0e8   4 s_last_orphan
        0x0ec  16 s_hash_seed
        0x0fc   1 s_def_hash_version
        0x0fd   1 s_jnl_backup_type
        0x0fe   2 s_desc_size
        0x100   4 s_default_mount_opts
        0x104   4 s_first_meta_bg
        0x108   4 s_mkfs_time
        0x10c  68 s_jnl_blocks
        0x150   4 s_blocks_count_hi
        0x154   4 s_r_blocks_count_hi
        0x158   4 s_free_blocks_count_hi
        0x15c   2 s_min_extra_isize
        0x15e   2 s_want_extra_isize
        0x160   4 s_flags
        0x164   2 s_raid_stride
        0x166   2 s_mmp_update_interval
        0x168   8 s_mmp_block
        0x170   4 s_raid_stripe_width
        0x174   1 s_log_groups_per_flex
        0x175   1 s_checksum_type
        0x176   1 s_encryption_level
        0x177   1 s_reserved_pad
        0x178   8 s_kbytes_written
        0x180   4 s_snapshot_inum
        0x184   4 s_snapshot_id
        0x188   8 s_snapshot_r_blocks_count
        0x190   4 s_snapshot_list
        0x194   4 s_error_count
        0x198   4 s_first_error_time
        0x19c   4 s_first_error_ino
        0x1a0   8 s_first_error_block
        0x1a8  32 s_first_error_func
        0x1c8   4 s_first_error_line
        0x1cc   4 s_last_error_time
        0x1d0   4 s_last_error_ino
        0x1d4   4 s_last_error_line
        0x1d8   8 s_last_error_block
        0x1e0  32 s_last_error_func
        0x200  64 s_mount_opts
        0x240   4 s_usr_quota_inum
        0x244   4 s_grp_quota_inum
        0x248   4 s_overhead_clusters
        0x24c   8 s_backup_bgs
        0x254   4 s_encrypt_algos
        0x258  16 s_encrypt_pw_salt
        0x268   4 s_lpf_ino
        0x26c   4 s_prj_quota_inum
        0x270   4 s_checksum_seed
        0x274   1 s_wtime_hi
        0x275   1 s_mtime_hi
        0x276   1 s_mkfs_time_hi
        0x277   1 s_lastcheck_hi
        0x278   1 s_first_error_time_hi
        0x279   1 s_last_error_time_hi
        0x27a   1 s_first_error_errcode
        0x27b   1 s_last_error_errcode
        0x27c   2 s_encoding
        0x27e   2 s_encoding_flags
        0x280   4 s_orphan_file_inum
        0x284   2 s_def_resuid_hi
        0x286   2 s_def_resgid_hi
        0x288 372 s_reserved
        0x3fc   4 s_checksum
    """,
    "group_desc.GroupDesc32 32": """
        0x000   4 bg_block_bitmap_lo
        0x004   4 bg_inode_bitmap_lo
        0x008   4 bg_inode_table_lo
        0x00c   2 bg_free_blocks_count_lo
        0x00e   2 bg_free_inodes_count_lo
        0x010   2 bg_used_dirs_count_lo
        0x012   2 bg_flags
        0x014   4 bg_exclude_bitmap_lo
        0x018   2 bg_block_bitmap_csum_lo
        0x01a   2 bg_inode_bitmap_csum_lo
        0x01c   2 bg_itable_unused_lo
        0x01e   2 bg_checksum
    """,
    "group_desc.GroupDesc64 64": """
        0x000   4 bg_block_bitmap_lo
        0x004   4 bg_inode_bitmap_lo
        0x008   4 bg_inode_table_lo
        0x00c   2 bg_free_blocks_count_lo
        0x00e   2 bg_free_inodes_count_lo
        0x010   2 bg_used_dirs_count_lo
        0x012   2 bg_flags
        0x014   4 bg_exclude_bitmap_lo
        0x018   2 bg_block_bitmap_csum_lo
        0x01a   2 bg_inode_bitmap_csum_lo
        0x01c   2 bg_itable_unused_lo
        0x01e   2 bg_checksum
        0x020   4 bg_block_bitmap_hi
        0x024   4 bg_inode_bitmap_hi
        0x028   4 bg_inode_table_hi
        0x02c   2 bg_free_blocks_count_hi
        0x02e   2 bg_free_inodes_count_hi
        0x030   2 bg_used_dirs_count_hi
        0x032   2 bg_itable_unused_hi
        0x034   4 bg_exclude_bitmap_hi
        0x038   2 bg_block_bitmap_csum_hi
        0x03a   2 bg_inode_bitmap_csum_hi
        0x03c   4 bg_reserved
    """,
    "inode.Inode 128": """
        0x000   2 i_mode
        0x002   2 i_uid
        0x004   4 i_size_lo
        0x008   4 i_atime
        0x00c   4 i_ctime
        0x010   4 i_mtime
        0x014   4 i_dtime
        0x018   2 i_gid
        0x01a   2 i_links_count
        0x01c   4 i_blocks_lo
        0x020   4 i_flags
        0x024   4 l_i_version
        0x028  60 i_block
        0x064   4 i_generation
        0x068   4 i_file_acl_lo
        0x06c   4 i_size_high
        0x070   4 i_obso_faddr
        0x074   2 l_i_blocks_high
        0x076   2 l_i_file_acl_high
        0x078   2 l_i_uid_high
        0x07a   2 l_i_gid_high
        0x07c   2 l_i_checksum_lo
        0x07e   2 l_i_reserved
    """,
    "inode.InodeExtra 32": """
        0x000   2 i_extra_isize
        0x002   2 i_checksum_hi
        0x004   4 i_ctime_extra
        0x008   4 i_mtime_extra
        0x00c   4 i_atime_extra
        0x010   4 i_crtime
        0x014   4 i_crtime_extra
        0x018   4 i_version_hi
        0x01c   4 i_projid
    """,
    "extent.ExtentHeader 12": """
        0x000   2 eh_magic
        0x002   2 eh_entries
        0x004   2 eh_max
        0x006   2 eh_depth
        0x008   4 eh_generation
    """,
    "extent.ExtentIndex 12": """
        0x000   4 ei_block
        0x004   4 ei_leaf_lo
        0x008   2 ei_leaf_hi
        0x00a   2 ei_unused
    """,
    "extent.Extent 12": """
        0x000   4 ee_block
        0x004   2 ee_len
        0x006   2 ee_start_hi
        0x008   4 ee_start_lo
    """,
    "extent.ExtentTail 4": """
        0x000   4 et_checksum
    """,
    "dirent.DirEntry2 8": """
        0x000   4 inode
        0x004   2 rec_len
        0x006   1 name_len
        0x007   1 file_type
    """,
    "dirent.DirEntry 8": """
        0x000   4 inode
        0x004   2 rec_len
        0x006   2 name_len
    """,
    "mmp.MmpBlock 1024": """
        0x000   4 mmp_magic
        0x004   4 mmp_seq
        0x008   8 mmp_time
        0x010  64 mmp_nodename
        0x050  32 mmp_bdevname
        0x070   2 mmp_check_interval
        0x072   2 mmp_pad1
        0x074 904 mmp_pad2
        0x3fc   4 mmp_checksum
    """,
    "verity.VerityDescriptor 256": """
        0x000   1 version
        0x001   1 hash_algorithm
        0x002   1 log_blocksize
        0x003   1 salt_size
        0x004   4 sig_size
        0x008   8 data_size
        0x010  64 root_hash
        0x050  32 salt
        0x070 144 reserved
    """,
    "quota.QuotaHeader 8": """
        0x000   4 dqh_magic
        0x004   4 dqh_version
    """,
    "quota.QuotaInfo 24": """
        0x000   4 dqi_bgrace
        0x004   4 dqi_igrace
        0x008   4 dqi_flags
        0x00c   4 dqi_blocks
        0x010   4 dqi_free_blk
        0x014   4 dqi_free_entry
    """,
    "quota.QuotaBlockHeader 16": """
        0x000   4 dqdh_next_free
        0x004   4 dqdh_prev_free
        0x008   2 dqdh_entries
        0x00a   2 dqdh_pad1
        0x00c   4 dqdh_pad2
    """,
    "quota.QuotaEntry 72": """
        0x000   4 dqb_id
        0x004   4 dqb_pad
        0x008   8 dqb_ihardlimit
        0x010   8 dqb_isoftlimit
        0x018   8 dqb_curinodes
        0x020   8 dqb_bhardlimit
        0x028   8 dqb_bsoftlimit
        0x030   8 dqb_curspace
        0x038   8 dqb_btime
        0x040   8 dqb_itime
    """,
    "orphan.OrphanBlockTail 8": """
        0x000   4 ob_magic
        0x004   4 ob_checksum
    """,
    "dirent.DirEntryTail 12": """
        0x000   4 det_reserved_zero1
        0x004   2 det_rec_len
        0x006   1 det_reserved_zero2
        0x007   1 det_reserved_ft
        0x008   4 det_checksum
    """,
    "htree.DxRootInfo 8": """
        0x000   4 reserved_zero
        0x004   1 hash_version
        0x005   1 info_length
        0x006   1 indirect_levels
        0x007   1 unused_flags
    """,
    "htree.DxRoot 32": """
        0x000   4 dot_inode
        0x004   2 dot_rec_len
        0x006   1 dot_name_len
        0x007   1 dot_file_type
        0x008   4 dot_name
        0x00c   4 dotdot_inode
        0x010   2 dotdot_rec_len
        0x012   1 dotdot_name_len
        0x013   1 dotdot_file_type
        0x014   4 dotdot_name
        0x018   4 reserved_zero
        0x01c   1 hash_version
        0x01d   1 info_length
        0x01e   1 indirect_levels
        0x01f   1 unused_flags
    """,
    "htree.DxNode 8": """
        0x000   4 fake_inode
        0x004   2 fake_rec_len
        0x006   1 fake_name_len
        0x007   1 fake_file_type
    """,
    "htree.DxEntry 8": """
        0x000   4 hash
        0x004   4 block
    """,
    "htree.DxCountLimit 4": """
        0x000   2 limit
        0x002   2 count
    """,
    "htree.DxTail 8": """
        0x000   4 dt_reserved
        0x004   4 dt_checksum
    """,
    "xattr.XattrIbodyHeader 4": """
        0x000   4 h_magic
    """,
    "xattr.XattrHeader 32": """
        0x000   4 h_magic
        0x004   4 h_refcount
        0x008   4 h_blocks
        0x00c   4 h_hash
        0x010   4 h_checksum
        0x014  12 h_reserved
    """,
    "xattr.XattrEntry 16": """
        0x000   1 e_name_len
        0x001   1 e_name_index
        0x002   2 e_value_offs
        0x004   4 e_value_inum
        0x008   4 e_value_size
        0x00c   4 e_hash
    """,
    "jbd2.BlockHeader 12": """
        0x000   4 h_magic
        0x004   4 h_blocktype
        0x008   4 h_sequence
    """,
    "jbd2.JournalSuperblock 1024": """
        0x000   4 h_magic
        0x004   4 h_blocktype
        0x008   4 h_sequence
        0x00c   4 s_blocksize
        0x010   4 s_maxlen
        0x014   4 s_first
        0x018   4 s_sequence
        0x01c   4 s_start
        0x020   4 s_errno
        0x024   4 s_feature_compat
        0x028   4 s_feature_incompat
        0x02c   4 s_feature_ro_compat
        0x030  16 s_uuid
        0x040   4 s_nr_users
        0x044   4 s_dynsuper
        0x048   4 s_max_transaction
        0x04c   4 s_max_trans_data
        0x050   1 s_checksum_type
        0x051   3 s_padding2
        0x054   4 s_num_fc_blks
        0x058   4 s_head
        0x05c 160 s_padding
        0x0fc   4 s_checksum
        0x100 768 s_users
    """,
    "jbd2.BlockTag 12": """
        0x000   4 t_blocknr
        0x004   2 t_checksum
        0x006   2 t_flags
        0x008   4 t_blocknr_high
    """,
    "jbd2.BlockTag3 16": """
        0x000   4 t_blocknr
        0x004   4 t_flags
        0x008   4 t_blocknr_high
        0x00c   4 t_checksum
    """,
    "jbd2.BlockTail 4": """
        0x000   4 t_checksum
    """,
    "jbd2.CommitHeader 60": """
        0x000   4 h_magic
        0x004   4 h_blocktype
        0x008   4 h_sequence
        0x00c   1 h_chksum_type
        0x00d   1 h_chksum_size
        0x00e   2 h_padding
        0x010   4 h_chksum
        0x014  28 h_chksum_rest
        0x030   8 h_commit_sec
        0x038   4 h_commit_nsec
    """,
    "jbd2.RevokeHeader 16": """
        0x000   4 h_magic
        0x004   4 h_blocktype
        0x008   4 h_sequence
        0x00c   4 r_count
    """,
    "fast_commit.FcTag 4": """
        0x000   2 fc_tag
        0x002   2 fc_len
    """,
    "fast_commit.FcHead 8": """
        0x000   4 fc_features
        0x004   4 fc_tid
    """,
    "fast_commit.FcAddRange 16": """
        0x000   4 fc_ino
        0x004  12 fc_ex
    """,
    "fast_commit.FcDelRange 12": """
        0x000   4 fc_ino
        0x004   4 fc_lblk
        0x008   4 fc_len
    """,
    "fast_commit.FcDentry 8": """
        0x000   4 fc_parent_ino
        0x004   4 fc_ino
    """,
    "fast_commit.FcInode 4": """
        0x000   4 fc_ino
    """,
    "fast_commit.FcTail 8": """
        0x000   4 fc_tid
        0x004   4 fc_crc
    """,
}

MODULES = (
    *("superblock", "group_desc", "inode", "extent", "dirent", "htree", "xattr"),
    *("jbd2", "mmp", "orphan", "quota", "verity", "fast_commit"),
)


def _parts(key: str) -> tuple[str, str, int]:
    place, size = key.split()
    module, name = place.split(".")
    return module, name, int(size)


def _module(name: str) -> Any:
    return importlib.import_module(f"py4fs.ext4.layout.{name}")


def _codecs(module: str) -> dict[str, Codec]:
    return {value.name: value for value in vars(_module(module)).values() if isinstance(value, Codec)}


CODECS = [(_codecs(module)[name], getattr(_module(module), name)) for module, name, _ in map(_parts, TABLE)]
IDS = [codec.name for codec, _ in CODECS]


def test_no_structure_is_missing_from_the_table() -> None:
    there = {(module, name) for module in MODULES for name in _codecs(module)}
    assert there == {_parts(key)[:2] for key in TABLE}


@pytest.mark.parametrize("key", TABLE)
def test_fields_offsets_and_sizes(key: str) -> None:
    module, name, size = _parts(key)
    codec = _codecs(module)[name]
    rows = map(str.split, TABLE[key].strip().splitlines())
    want = [(int(at, 16), int(length), field) for at, length, field in rows]
    got = [(codec.offsets[field], codec.sizes[field], field) for field in codec.fields]
    assert got == want
    assert codec.size == size
    assert getattr(_module(module), name).sizeof() == size


@pytest.mark.parametrize(("codec", "definition"), CODECS, ids=IDS)
@given(data=st.data())
def test_round_trip_and_agreement_with_construct(codec: Codec, definition: Any, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=codec.size, max_size=codec.size))
    lead = data.draw(st.integers(0, 9))
    record = codec.unpack_from(b"\xaa" * lead + raw + b"\xbb", lead)
    assert codec.pack(*record) == raw
    parsed = definition.parse(raw)
    assert {field: parsed[field] for field in codec.fields} == record._asdict()
    assert definition.build(record._asdict()) == raw
    assert [codec.get(raw, 0, field) for field in codec.fields] == list(record)


@pytest.mark.parametrize(("codec", "definition"), CODECS, ids=IDS)
def test_put_changes_one_field_only(codec: Codec, definition: Any) -> None:
    for field in codec.fields:
        buf = bytearray(codec.size + 6)
        size = codec.sizes[field]
        whole = isinstance(codec.unpack_from(buf, 3)._asdict()[field], bytes)
        codec.put(buf, 3, **{field: b"\xff" * size if whole else (1 << 8 * size) - 1})
        at = 3 + codec.offsets[field]
        assert buf == b"\0" * at + b"\xff" * size + b"\0" * (codec.size + 6 - at - size)
        assert codec.get(buf, 3, field) == codec.unpack_from(buf, 3)._asdict()[field]


@pytest.mark.parametrize(("codec", "definition"), CODECS, ids=IDS)
def test_fields_and_spans_are_those_of_the_whole(codec: Codec, definition: Any) -> None:
    raw = bytes((7 * i + 3) % 256 for i in range(3 + codec.size))
    values = codec.values_from(raw, 3)
    assert [codec.field(name).get(raw, 3) for name in codec.fields] == list(values)
    zeros = [bytes(len(value)) if isinstance(value, bytes) else 0 for value in values]
    for at, name in enumerate(codec.fields):
        changed, expected = bytearray(raw), bytearray(raw)
        codec.field(name).put(changed, 3, zeros[at])
        codec.put(expected, 3, **{name: zeros[at]})
        assert changed == expected, name
        codec.span(*codec.fields[at:]).put(changed, 3, values[at:])
        assert changed == raw, name
    if len(codec.fields) > 2:
        with pytest.raises(AssertionError, match="no neighbour"):
            codec.span(codec.fields[0], codec.fields[2])


@pytest.mark.parametrize(("codec", "definition"), CODECS, ids=IDS)
def test_short_buffers_are_corrupt(codec: Codec, definition: Any) -> None:
    for have in range(codec.size):
        with pytest.raises(Corrupt, match=rf"{codec.name} .*found {have} bytes, expected {codec.size} bytes"):
            codec.unpack_from(bytes(have))
    with pytest.raises(Corrupt):
        codec.unpack_from(bytes(codec.size), 1)
    with pytest.raises(Corrupt):
        codec.unpack_from(bytes(codec.size), 10 * codec.size)
    with pytest.raises(Corrupt):
        codec.get(bytes(codec.size - 1), 0, codec.fields[-1])
    with pytest.raises(Corrupt):
        codec.iter_unpack(bytes(3 * codec.size), 1, 3)


def test_iter_unpack_reads_records_back_to_back() -> None:
    codec = _codecs("extent")["Extent"]
    raw = b"xy" + b"".join(codec.pack(n, 2 * n, 3 * n, 4 * n) for n in range(10)) + b"z"
    got = list(codec.iter_unpack(bytearray(raw), 2, 10))
    assert [tuple(record) for record in got] == [(n, 2 * n, 3 * n, 4 * n) for n in range(10)]
    assert got[3].ee_start_lo == 12
    assert list(codec.iter_unpack(raw, 2, 0)) == []


def test_jbd2_is_big_endian_and_the_rest_little() -> None:
    assert _codecs("jbd2")["BlockHeader"].pack(1, 2, 3) == bytes((0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3))
    assert _codecs("htree")["DxEntry"].pack(1, 2) == bytes((1, 0, 0, 0, 2, 0, 0, 0))


@pytest.mark.parametrize(
    "definition",
    [
        construct.Struct("a" / construct.Int16ul, "b" / construct.Int16ub),
        construct.Struct("a" / construct.Struct("b" / construct.Int8ul)),
        construct.Struct(construct.Padding(4)),
        construct.Struct("a" / construct.GreedyBytes),
    ],
)
def test_only_flat_definitions_have_a_codec(definition: Any) -> None:
    with pytest.raises(AssertionError):
        derive(definition, "Bad")
