// SPDX-License-Identifier: GPL-2.0-only
/*
 * fakeixgbe - ixgbe's PF mailbox without the card
 *
 * Part of vftrace's lab. A card's registers are plain memory here; over them lies an ixgbe_adapter
 * with the operations of the stock ixgbe.ko, whose own ixgbe_msg_task() then answers what is put into
 * the mailboxes. Only the wires are ours: what a VF would write, and what it would find.
 *
 *   /sys/kernel/debug/fakeixgbe/control   one command a write
 *   /sys/kernel/debug/fakeixgbe/answer    what the last command came to
 *
 * Commands (numbers decimal, words hexadecimal):
 *   send VF WORD...         a VF writes these words into its mailbox, the rest stays as it was
 *   flood VF COUNT WORD...  the same so many times
 *   reset VF                a VF is reset as a function
 *   vendor VF WORD...       as send, but the PF's driver is one that knows the message and grants it: read
 *                           and answered by ixgbe.ko's functions, as a vendor's driver that kept them would
 *   tell VF WORD...         the PF writes this to a VF
 *   ping                    the PF pings all its VFs
 *   key                     the answer is the RSS key, which nobody else may show
 *
 * Answer to send, vendor, tell, flood and reset: "STATUS WORD..." where STATUS is `replied` if the PF left a
 * message, else `silent`, and the words are the mailbox's 16. Registers do not clear what is written
 * to them as the card's do, and all runs in the context of the process that writes the command.
 */

#include <linux/debugfs.h>
#include <linux/etherdevice.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "ixgbe.h"
#include "ixgbe_mbx.h"
#include "ixgbe_sriov.h"

#define FAKE_VFS	4
#define FAKE_BAR	0x40000
#define FAKE_TABLE	128
#define FAKE_LINE	512
#define FAKE_RSS_WORDS	10
#define FAKE_FLOOD_MAX	10000000

/* Of ixgbe.ko, which exports nothing. */
static struct {
	unsigned long (*lookup)(const char *name);
	void (*msg_task)(struct ixgbe_adapter *adapter);
	void (*ping_all_vfs)(struct ixgbe_adapter *adapter);
	void (*init_mbx_params_pf)(struct ixgbe_hw *hw);
	s32 (*read_mbx)(struct ixgbe_hw *hw, u32 *msg, u16 size, u16 vf);
	s32 (*write_mbx)(struct ixgbe_hw *hw, u32 *msg, u16 size, u16 vf);
	const struct ixgbe_info *info;
} driver;

static struct ixgbe_adapter *adapter;
static struct net_device *netdev;
static u8 *bar;
static struct dentry *directory;
static char answer[FAKE_LINE];
static DEFINE_MUTEX(lock);

static u32 reg_read(u32 offset)
{
	return *(u32 *)(bar + offset);
}

static void reg_write(u32 offset, u32 value)
{
	*(u32 *)(bar + offset) = value;
}

/* kallsyms_lookup_name() is not exported; a kprobe on it knows where it is. */
static int find_driver(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int ret = register_kprobe(&probe);

	if (ret)
		return ret;
	driver.lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	driver.msg_task = (void *)driver.lookup("ixgbe:ixgbe_msg_task");
	driver.ping_all_vfs = (void *)driver.lookup("ixgbe:ixgbe_ping_all_vfs");
	driver.init_mbx_params_pf = (void *)driver.lookup("ixgbe:ixgbe_init_mbx_params_pf");
	driver.read_mbx = (void *)driver.lookup("ixgbe:ixgbe_read_mbx");
	driver.write_mbx = (void *)driver.lookup("ixgbe:ixgbe_write_mbx");
	driver.info = (void *)driver.lookup("ixgbe:ixgbe_82599_info");
	if (!driver.msg_task || !driver.ping_all_vfs || !driver.init_mbx_params_pf ||
	    !driver.read_mbx || !driver.write_mbx || !driver.info)
		return -ENOENT;
	return 0;
}

static void say_mailbox(u32 vf)
{
	bool replied = reg_read(IXGBE_PFMAILBOX(vf)) & IXGBE_PFMAILBOX_STS;
	int used = scnprintf(answer, sizeof(answer), "%s", replied ? "replied" : "silent");
	int i;

	for (i = 0; i < IXGBE_VFMAILBOX_SIZE; i++)
		used += scnprintf(answer + used, sizeof(answer) - used, " %08x",
				  reg_read(IXGBE_PFMBMEM(vf) + 4 * i));
	scnprintf(answer + used, sizeof(answer) - used, "\n");
}

static void run_task(u32 vf)
{
	reg_write(IXGBE_PFMAILBOX(vf), 0);
	driver.msg_task(adapter);
	reg_write(IXGBE_MBVFICR(0), 0);
	reg_write(IXGBE_VFLRE(0), 0);
}

static void send_words(u32 vf, const u32 *words, int count)
{
	int i;

	for (i = 0; i < count; i++)
		reg_write(IXGBE_PFMBMEM(vf) + 4 * i, words[i]);
	reg_write(IXGBE_MBVFICR(0), IXGBE_MBVFICR_VFREQ_VF1 << vf);
	run_task(vf);
}

static int grant(u32 vf, const u32 *words, int count)
{
	u32 msg[IXGBE_VFMAILBOX_SIZE];
	int i;

	for (i = 0; i < count; i++)
		reg_write(IXGBE_PFMBMEM(vf) + 4 * i, words[i]);
	reg_write(IXGBE_PFMAILBOX(vf), 0);
	if (driver.read_mbx(&adapter->hw, msg, IXGBE_VFMAILBOX_SIZE, vf))
		return -EIO;
	reg_write(IXGBE_PFMAILBOX(vf), 0);
	msg[0] |= IXGBE_VT_MSGTYPE_ACK | IXGBE_VT_MSGTYPE_CTS;
	return driver.write_mbx(&adapter->hw, msg, count, vf) ? -EIO : 0;
}

static int tell(u32 vf, u32 *words, int count)
{
	reg_write(IXGBE_PFMAILBOX(vf), 0);
	return driver.write_mbx(&adapter->hw, words, count, vf) ? -EIO : 0;
}

static int next_number(char **line, unsigned int base, u32 *value)
{
	char *word = strsep(line, " ");

	return word ? kstrtou32(word, base, value) : -EINVAL;
}

static int send_command(const char *verb, char *line, u32 vf, u32 times)
{
	u32 words[IXGBE_VFMAILBOX_SIZE];
	int count = 0, ret = 0;

	while (line && count < IXGBE_VFMAILBOX_SIZE) {
		if (next_number(&line, 16, &words[count]))
			return -EINVAL;
		count++;
	}
	if (!count || line)
		return -EINVAL;
	if (!strcmp(verb, "vendor"))
		ret = grant(vf, words, count);
	else if (!strcmp(verb, "tell"))
		ret = tell(vf, words, count);
	else
		while (times--) {
			send_words(vf, words, count);
			cond_resched();
		}
	say_mailbox(vf);
	return ret;
}

static int obey(char *line)
{
	char *verb = strsep(&line, " ");
	u32 vf, times = 1;

	if (!strcmp(verb, "ping")) {
		driver.ping_all_vfs(adapter);
		strscpy(answer, "pinged\n", sizeof(answer));
		return 0;
	}
	if (!strcmp(verb, "key")) {
		scnprintf(answer, sizeof(answer), "%*phN\n", FAKE_RSS_WORDS * 4, adapter->rss_key);
		return 0;
	}
	if (next_number(&line, 10, &vf) || vf >= FAKE_VFS)
		return -EINVAL;
	if (!strcmp(verb, "reset")) {
		reg_write(IXGBE_VFLRE(0), BIT(vf));
		run_task(vf);
		say_mailbox(vf);
		return 0;
	}
	if (!strcmp(verb, "flood")) {
		if (next_number(&line, 10, &times) || times > FAKE_FLOOD_MAX)
			return -EINVAL;
	} else if (strcmp(verb, "send") && strcmp(verb, "vendor") && strcmp(verb, "tell")) {
		return -EINVAL;
	}
	return send_command(verb, line, vf, times);
}

static ssize_t control_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char line[FAKE_LINE];
	int ret;

	if (!size || size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, size))
		return -EFAULT;
	line[size] = 0;
	mutex_lock(&lock);
	ret = obey(strim(line));
	mutex_unlock(&lock);
	return ret ? ret : size;
}

static ssize_t answer_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	return simple_read_from_buffer(to, size, at, answer, strlen(answer));
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.write = control_write,
};

static const struct file_operations answer_fops = {
	.owner = THIS_MODULE,
	.read = answer_read,
};

static int make_netdev(void)
{
#ifdef ADAPTER_BY_POINTER
	struct ixgbe_netdevice_priv *private;

	netdev = alloc_etherdev_mq(sizeof(*private), FAKE_VFS);
	adapter = kzalloc(sizeof(*adapter), GFP_KERNEL);
	if (!netdev || !adapter)
		return -ENOMEM;
	private = netdev_priv(netdev);
	private->adapter = adapter;
#else
	netdev = alloc_etherdev_mq(sizeof(*adapter), FAKE_VFS);
	if (!netdev)
		return -ENOMEM;
	adapter = netdev_priv(netdev);
#endif
	strscpy(netdev->name, "fakeixgbe", IFNAMSIZ);
	adapter->netdev = netdev;
	return 0;
}

static void make_card(void)
{
	struct ixgbe_hw *hw = &adapter->hw;

	hw->back = adapter;
	hw->hw_addr = (u8 __iomem *)bar;
	adapter->io_addr = hw->hw_addr;
	hw->mac.type = ixgbe_mac_82599EB;
	hw->mac.ops = *driver.info->mac_ops;
	hw->mbx.ops = driver.info->mbx_ops;
	hw->mvals = driver.info->mvals;
	hw->mac.num_rar_entries = FAKE_TABLE;
	hw->mac.mcft_size = FAKE_TABLE;
	hw->mac.vft_size = FAKE_TABLE;
	hw->mac.max_tx_queues = FAKE_TABLE;
	hw->mac.max_rx_queues = FAKE_TABLE;
	hw->mac.rx_pb_size = 512;
	driver.init_mbx_params_pf(hw);
}

/* VF 0 has a MAC that the host gave it; VF 3 may not ask for the RSS key. */
static void make_vfs(void)
{
	static const u8 given[ETH_ALEN] = { 0x02, 0, 0, 0, 0, 0x10 };
	int i;

	adapter->num_vfs = FAKE_VFS;
	spin_lock_init(&adapter->vfs_lock);
	INIT_LIST_HEAD(&adapter->vf_mvs.l);
	adapter->flags = IXGBE_FLAG_SRIOV_ENABLED | IXGBE_FLAG_SRIOV_CAPABLE;
	adapter->ring_feature[RING_F_VMDQ].offset = FAKE_VFS;
	adapter->ring_feature[RING_F_VMDQ].limit = 1;
	adapter->ring_feature[RING_F_VMDQ].mask = IXGBE_82599_VMDQ_4Q_MASK;
	for (i = 0; i < FAKE_VFS; i++) {
		adapter->vfinfo[i].spoofchk_enabled = true;
		adapter->vfinfo[i].link_enable = true;
		adapter->vfinfo[i].xcast_mode = IXGBEVF_XCAST_MODE_NONE;
		adapter->vfinfo[i].rss_query_enabled = i != 3;
	}
	adapter->vfinfo[0].pf_set_mac = true;
	ether_addr_copy(adapter->vfinfo[0].vf_mac_addresses, given);
}

static void release(void)
{
	if (adapter) {
		pci_dev_put(adapter->pdev);
		kfree(adapter->vfinfo);
		kfree(adapter->mac_table);
		kfree(adapter->rss_key);
	}
#ifdef ADAPTER_BY_POINTER
	kfree(adapter);
#endif
	if (netdev)
		free_netdev(netdev);
	vfree(bar);
}

static int __init fakeixgbe_init(void)
{
	int ret = find_driver();

	if (ret)
		return ret;
	ret = -ENOMEM;
	bar = vzalloc(FAKE_BAR);
	if (!bar || make_netdev())
		goto failed;
	adapter->vfinfo = kcalloc(FAKE_VFS, sizeof(*adapter->vfinfo), GFP_KERNEL);
	adapter->mac_table = kcalloc(FAKE_TABLE, sizeof(*adapter->mac_table), GFP_KERNEL);
	adapter->rss_key = kcalloc(FAKE_RSS_WORDS, sizeof(u32), GFP_KERNEL);
	if (!adapter->vfinfo || !adapter->mac_table || !adapter->rss_key)
		goto failed;
	get_random_bytes(adapter->rss_key, FAKE_RSS_WORDS * sizeof(u32));
	ret = -ENODEV;
	/* The host bridge lends its address. */
	adapter->pdev = pci_get_domain_bus_and_slot(0, 0, PCI_DEVFN(0, 0));
	if (!adapter->pdev)
		goto failed;
	SET_NETDEV_DEV(netdev, &adapter->pdev->dev);
	make_card();
	make_vfs();
	directory = debugfs_create_dir("fakeixgbe", NULL);
	debugfs_create_file("control", 0200, directory, NULL, &control_fops);
	debugfs_create_file("answer", 0400, directory, NULL, &answer_fops);
	return 0;
failed:
	release();
	return ret;
}

static void __exit fakeixgbe_exit(void)
{
	debugfs_remove_recursive(directory);
	release();
}

module_init(fakeixgbe_init);
module_exit(fakeixgbe_exit);
MODULE_DESCRIPTION("ixgbe's PF mailbox over memory, for vftrace's lab");
MODULE_LICENSE("GPL");
MODULE_SOFTDEP("pre: ixgbe");
