package main

import (
	"fmt"
	"strings"
	"time"

	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

const listenHandoffHelp = `Who gets the next connection is said by --strategy, among the workers of the highest
priority that have room: who has the fewest connections open, for its weight
(least-active, as it is by default); one after the other, by their weights (round-robin);
or the same client address the same worker, for as long as that is there
(client-address). Workers of a lower priority get what those before them have no room
for. A worker says its weight and its priority when it attaches.

While no worker is attached and ready, clients are connected and wait (wait, as it is by
default), are refused as if nobody listened (refuse), or are not answered, so that their
own retries connect them once a worker is there (park). After --refuse-after without a
worker they are refused whatever that says, until there is one; who waits then is reset.`

// handoffFlags are the options of the hand-off as flags.
type handoffFlags struct {
	strategy, without          string
	refuseAfter, takeBackAfter time.Duration
}

// choices are the words for the values of an enum, but for the unspecified.
func choices(e protoreflect.Enum) (words []string) {
	values := e.Descriptor().Values()
	prefix := strings.TrimSuffix(string(values.ByNumber(0).Name()), "UNSPECIFIED")
	for i := 1; i < values.Len(); i++ {
		words = append(words, enumWord(strings.TrimPrefix(string(values.Get(i).Name()), prefix)))
	}
	return words
}

func enumWord(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// choice is the value of an enum whose word this is.
func choice(flag, text string, e protoreflect.Enum) (protoreflect.EnumNumber, error) {
	for i, word := range choices(e) {
		if word == text {
			return e.Descriptor().Values().Get(i + 1).Number(), nil
		}
	}
	return 0, usagef("--%s is %s, not %q", flag, strings.Join(choices(e), ", "), text)
}

func (f *handoffFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.strategy, "strategy", "", "who gets the next connection: least-active, round-robin or client-address")
	flags.StringVar(&f.without, "without-worker", "", "what becomes of clients without a worker: wait, refuse or park")
	flags.DurationVar(&f.refuseAfter, "refuse-after", 0, "refuse clients after this `time` without a worker (default never)")
	flags.DurationVar(&f.takeBackAfter, "take-back-after", 0, "give others what a worker leaves in its queue for this `time` (default never)")
	for name, e := range map[string]protoreflect.Enum{"strategy": pb.Strategy(0), "without-worker": pb.WithoutWorker(0)} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(choices(e), cobra.ShellCompDirectiveNoFileComp))
	}
}

// check says what is wrong with words of the flags.
func (f *handoffFlags) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("strategy") {
		if _, err := choice("strategy", f.strategy, pb.Strategy(0)); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("without-worker") {
		if _, err := choice("without-worker", f.without, pb.WithoutWorker(0)); err != nil {
			return err
		}
	}
	return nil
}

// byName are the flags by their names, for listenFlags.
func (f *handoffFlags) byName() map[string]listenFlag {
	in := func(o *pb.ListenOptions) *pb.HandoffOptions {
		if o.Handoff == nil {
			o.Handoff = &pb.HandoffOptions{}
		}
		return o.Handoff
	}
	return map[string]listenFlag{
		"strategy": {"handoff.strategy", func(o *pb.ListenOptions) {
			n, _ := choice("strategy", f.strategy, pb.Strategy(0)) // checked
			in(o).Strategy = pb.Strategy(n)
		}},
		"without-worker": {"handoff.without_worker", func(o *pb.ListenOptions) {
			n, _ := choice("without-worker", f.without, pb.WithoutWorker(0))
			in(o).WithoutWorker = pb.WithoutWorker(n)
		}},
		"refuse-after":    {"handoff.refuse_after", func(o *pb.ListenOptions) { in(o).RefuseAfter = durationpb.New(f.refuseAfter) }},
		"take-back-after": {"handoff.take_back_after", func(o *pb.ListenOptions) { in(o).TakeBackAfter = durationpb.New(f.takeBackAfter) }},
	}
}

// handoffText tells the options of the hand-off.
func handoffText(o *pb.HandoffOptions) string {
	texts := []string{enumWord(word(o.GetStrategy())), "without a worker " + word(o.GetWithoutWorker())}
	if o.GetRefuseAfter() != nil {
		texts = append(texts, fmt.Sprintf("refuse after %v", o.GetRefuseAfter().AsDuration()))
	}
	if o.GetTakeBackAfter() != nil {
		texts = append(texts, fmt.Sprintf("take back after %v", o.GetTakeBackAfter().AsDuration()))
	}
	return strings.Join(texts, ", ")
}

// receptionText is empty where clients are served.
func receptionText(r pb.Reception) string {
	if r <= pb.Reception_RECEPTION_SERVED {
		return ""
	}
	return word(r) + ": no worker"
}
