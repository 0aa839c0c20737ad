package commands

import "github.com/spf13/cobra"

// nouns are the commands that show and change the cluster.
func nouns(a *app) []*cobra.Command {
	return []*cobra.Command{
		newApplyCommand(a),
		newBackupCommand(a),
		newBGPCommand(a),
		newCreateCommand(a),
		newDeleteCommand(a),
		newDiagsCommand(a),
		newDoctorCommand(a),
		newDropsCommand(a),
		newEditCommand(a),
		newEndpointCommand(a),
		newEventsCommand(a),
		newExplainCommand(a), newTraceCommand(a),
		newGetCommand(a),
		newHostEndpointCommand(a),
		newImportCommand(a),
		newInitCommand(a),
		newHistoryCommand(a),
		newIPAMCommand(a),
		newJoinCommand(a),
		newNetworkCommand(a),
		newNetworkSetCommand(a),
		newPolicyCommand(a),
		newPoolCommand(a),
		newProfileCommand(a),
		newReplaceCommand(a),
		newRestoreCommand(a),
		newRouteCommand(a),
		newStatusCommand(a),
		newTierCommand(a),
		newTokenCommand(a),
		newUndoCommand(a),
	}
}
